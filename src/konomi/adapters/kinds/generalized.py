"""GLoRA (Chavan et al. 2023, "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning"),
as LyCORIS has it: a low-rank change of the weight, and one of what goes into it.

PEFT's GLoRA multiplies the weight number by number, and is another update.

Shapes: O output, I input, K kernel, R rank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from konomi.adapters.kinds.change_layer import ChangeSpec
from konomi.adapters.kinds.closed_form import fit
from konomi.adapters.kinds.kind import About, LayerSettings, Training, not_available
from konomi.adapters.kinds.module import check_rank
from konomi.adapters.kinds.parts import LayerError, alpha_of, check_core, present, scalar
from konomi.errors import ModelError

_FACTORS = ("a1", "a2", "b1", "b2")


@dataclass(frozen=True, slots=True)
class Generalized:
    """dW = (W a1 a2 + b1 b2) alpha / R, where a1 a2 mixes the inputs of each cell of a kernel."""

    about: ClassVar[About] = About(
        name="glora",
        parts={f"{name}.weight": (2, 4) for name in _FACTORS} | {"bm.weight": (4,), "alpha": ()},
        complete=(frozenset(f"{name}.weight" for name in _FACTORS),),
        algo="glora",
        training=Training(
            "glora",
            lambda settings: ChangeSpec("glora", settings, _start),
            uses=frozenset(
                {"rank", "alpha", "scaling", "dropout", "rank_dropout", "module_dropout"}
            ),
        ),
    )
    magnitude: ClassVar[None] = None
    bias: ClassVar[None] = None
    whole: ClassVar[None] = None

    a1: Tensor
    """[I, R] or [I, R, 1, 1]."""
    a2: Tensor
    """[R, I] or [R, I, 1, 1]."""
    b1: Tensor
    """[O, R] or [O, R, 1, 1]."""
    b2: Tensor
    """[R, I] or [R, I, K, K]; with `bm` [R, I, 1, 1]."""
    alpha: float
    bm: Tensor | None = None
    """Tucker core [R, R, K, K]."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for factors that are missing or of different rank or size."""
        for name in _FACTORS:
            if f"{name}.weight" not in parts:
                raise LayerError("", f"has no matrix {name}")
        a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in _FACTORS)
        rank = a2.shape[0]
        for name, inner in (("a1", a1.shape[1]), ("b1", b1.shape[1]), ("b2", b2.shape[0])):
            if inner != rank:
                raise LayerError(f"{name}.weight", f"has rank {inner}; a2 has {rank}")
        if a1.shape[0] != a2.shape[1] or a1.shape[0] != b2.shape[1]:
            raise LayerError("a1.weight", "and a2 or b2 belong to layers of different inputs")
        if "bm.weight" in parts:
            core = {"bm.weight": parts["bm.weight"], "b1": b1.transpose(0, 1), "b2": b2}
            check_core(core, "bm.weight", "b1", "b2")
        return cls(a1, a2, b1, b2, alpha_of(parts, rank), parts.get("bm.weight"))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        del norm
        return present(
            {f"{name}.weight": getattr(self, name) for name in (*_FACTORS, "bm")}
            | {"alpha": scalar(self.alpha, self.a1)}
        )

    @property
    def rank(self) -> int:
        return self.a2.shape[0]

    @property
    def input_width(self) -> int:
        return self.a2.shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        if weight.dim() < 2 or weight.shape[1] != self.input_width:
            raise ModelError(
                f"the update is for {self.input_width} inputs, this weight has {list(weight.shape)}"
            )
        a1, a2, b1 = (factor.flatten(1) for factor in (self.a1, self.a2, self.b1))
        mixed = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
        if self.bm is None:
            added = b1 @ self.b2.flatten(1)
        else:
            added = torch.einsum("rskl,or,si->oikl", self.bm, b1, self.b2.flatten(1))
        return (mixed + fit(added, weight)) * (self.alpha / self.rank)

    def bias_delta(self, bias: Tensor) -> None:
        del bias

    difference = as_low_rank = norm = not_available
    """Half of the change is the weight's own."""


def _start(
    key: str, module: nn.Linear | nn.Conv2d, settings: LayerSettings, generator: torch.Generator
) -> Generalized:
    """As LyCORIS has it: a2 and b2 are zero."""
    rank, weight = settings.rank, module.weight
    check_rank(key, rank, weight)
    outputs, inputs, *kernel = weight.shape
    ones, bound = [1 for _ in kernel], 1.0 / math.sqrt(rank)
    a1, b1 = (
        torch.empty(size, rank, *ones).uniform_(-bound, bound, generator=generator)
        for size in (inputs, outputs)
    )
    a2, b2 = torch.zeros(rank, inputs, *ones), torch.zeros(rank, inputs, *kernel)
    return Generalized(a1, a2, b1, b2, settings.scale * rank)

"""LoKr: a Kronecker product (Yeh et al. 2023, "Navigating Text-To-Image Customization: From
LyCORIS ...").

Shapes: O output, I input, K kernel, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from konomi.adapters.kinds.closed_form import fit_bias, product
from konomi.adapters.kinds.kind import About, not_available
from konomi.adapters.kinds.magnitude import change_of
from konomi.adapters.kinds.parts import (
    SHARED,
    LayerError,
    alpha_of,
    bias_of,
    check_core,
    present,
    scalar,
)
from konomi.errors import ModelError

_WHOLE = ("w1", "w2")
_FACTORS = ("w1_a", "w1_b", "w2_a", "w2_b")


@dataclass(frozen=True, slots=True)
class Kronecker:
    """dW = kron(w1, w2) * scale; each factor is full, a product a @ b, or (w2) a Tucker product
    with t2.
    """

    about: ClassVar[About] = About(
        name="lokr",
        parts={f"lokr_{name}": (2, 4) for name in _WHOLE}
        | {f"lokr_{name}": (2,) for name in _FACTORS}
        | {"lokr_t2": (4,)}
        | SHARED,
        complete=(frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"})),
        peft_type="LOKR",
        algo="lokr",
    )
    whole: ClassVar[None] = None

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """db [O], given outright."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for factors that are missing, given twice or of different rank."""
        for factor in ("lokr_w1", "lokr_w2"):
            pair = {f"{factor}_a", f"{factor}_b"}
            if factor in parts:
                if parts.keys() & pair:
                    raise LayerError(factor, "is given twice, whole and factored")
            elif not pair <= parts.keys():
                raise LayerError("", f"has neither {factor} nor both of its factors")
            # The Tucker core of w2 joins axes 0 of both factors.
            elif not (factor == "lokr_w2" and "lokr_t2" in parts):
                inner = (parts[f"{factor}_a"].shape[1], parts[f"{factor}_b"].shape[0])
                if inner[0] != inner[1]:
                    raise LayerError(
                        f"{factor}_a", f"has rank {inner[0]}; {factor}_b has {inner[1]}"
                    )
        if "lokr_t2" in parts:
            if "lokr_w2_a" not in parts:
                raise LayerError("lokr_t2", "has no factors to join")
            check_core(parts, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
        tensors = {
            name.removeprefix("lokr_"): tensor
            for name, tensor in parts.items()
            if name.startswith("lokr_")
        }
        alpha = alpha_of(parts, 1) if "alpha" in parts else None
        return cls(**tensors, alpha=alpha, magnitude=parts.get("dora_scale"), bias=bias_of(parts))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        del norm
        names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        found: dict[str, Tensor | None] = {f"lokr_{name}": getattr(self, name) for name in names}
        like = next(tensor for tensor in found.values() if tensor is not None)
        found["alpha"] = None if self.alpha is None else scalar(self.alpha, like)
        return present(found | {"dora_scale": self.magnitude, "diff_b": self.bias})

    @property
    def rank(self) -> int | None:
        """Of the factor that is a product, the first one's if both are."""
        inner = (factor for factor in (self.w1_b, self.w2_b) if factor is not None)
        return next((factor.shape[0] for factor in inner), None)

    @property
    def input_width(self) -> int | None:
        """I is the product of both factors' inputs."""
        inputs = (
            (self.w1_b if self.w1 is None else self.w1),
            (self.w2_b if self.w2 is None else self.w2),
        )
        if inputs[0] is None or inputs[1] is None:
            return None
        return inputs[0].shape[1] * inputs[1].shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        first = _factor(self.w1, self.w1_a, self.w1_b, None)
        second = _factor(self.w2, self.w2_a, self.w2_b, self.t2)
        scale = self.alpha / self.rank if self.alpha is not None and self.rank else 1.0
        if second.dim() == 4:
            first = first[:, :, None, None]
        change = torch.kron(first, second.contiguous()) * scale
        return change_of(change, self.magnitude, weight)

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        return fit_bias(self.bias, bias)

    difference = as_low_rank = norm = not_available
    """Only the weight tells the shape of the change."""


def _factor(full: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    if full is not None:
        return full
    if a is None or b is None:
        raise ModelError("a Kronecker factor is missing")
    return product(a, b, core)

"""A change of full size, given outright: LyCORIS' `full`, and the norms of its files.

Shapes: O output, I input, K kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from konomi.adapters.kinds.change_layer import ChangeSpec
from konomi.adapters.kinds.closed_form import fit, fit_bias, precise
from konomi.adapters.kinds.kind import About, LayerSettings, Training, not_available
from konomi.adapters.kinds.parts import LayerError, present

_AXES = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Difference:
    """dW and db given outright; norms too."""

    about: ClassVar[About] = About(
        name="diff",
        parts={"diff": _AXES, "diff_b": _AXES, "w_norm": _AXES, "b_norm": _AXES},
        complete=(
            frozenset({"diff"}),
            frozenset({"diff_b"}),
            frozenset({"w_norm"}),
            frozenset({"b_norm"}),
        ),
        algo="full",
        nearest=lambda change, rank: Difference(change),
        training=Training(
            "full",
            lambda settings: ChangeSpec("full", settings, _start),
            uses=frozenset({"dropout", "rank_dropout", "module_dropout", "max_norm"}),
            learning_rate=1e-5,
            trains_bias=True,
        ),
    )
    alpha: ClassVar[None] = None
    magnitude: ClassVar[None] = None
    whole: ClassVar[None] = None
    rank: ClassVar[None] = None

    weight: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError where one is given twice."""
        if {"diff", "w_norm"} <= parts.keys() or {"diff_b", "b_norm"} <= parts.keys():
            raise LayerError("diff", "is given twice, as difference and as norm")
        weight = parts["diff"] if "diff" in parts else parts.get("w_norm")
        return cls(weight, parts["diff_b"] if "diff_b" in parts else parts.get("b_norm"))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        """Those of a normalisation have their own names."""
        return present(
            {"w_norm" if norm else "diff": self.weight, "b_norm" if norm else "diff_b": self.bias}
        )

    @property
    def input_width(self) -> int | None:
        return None if self.weight is None or self.weight.dim() < 2 else self.weight.shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight) if self.weight is None else fit(self.weight, weight)

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        return fit_bias(self.bias, bias)

    def difference(self) -> Tensor | None:
        return None if self.weight is None else precise(self.weight)

    as_low_rank = norm = not_available


def _start(
    key: str, module: nn.Linear | nn.Conv2d, settings: LayerSettings, generator: torch.Generator
) -> Difference:
    """Nothing of weight and bias, where there is a bias."""
    del key, settings, generator
    bias = None if module.bias is None else torch.zeros(module.bias.shape)
    return Difference(torch.zeros(module.weight.shape), bias)

"""A layer that is given whole, as Custom Diffusion's files hold it (Kumari et al. 2022).

Shapes: O output, I input, K kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from konomi.adapters.kinds.closed_form import fit, precise
from konomi.adapters.kinds.kind import About, not_available
from konomi.errors import FileFormatError


@dataclass(frozen=True, slots=True)
class Replacement:
    """W' = weight, whatever W is."""

    about: ClassVar[About] = About(
        name="whole",
        parts={"set_weight": (1, 2, 3, 4)},
        complete=(frozenset({"set_weight"}),),
        algo="full",
    )
    alpha: ClassVar[None] = None
    magnitude: ClassVar[None] = None
    rank: ClassVar[None] = None

    weight: Tensor
    origin: Tensor | None = None
    """The W it stands in for, where that is known: only then can the change be told without the
    base."""
    bias: Tensor | None = None
    """b' [O], whatever b is."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        return cls(parts["set_weight"])

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        """Raises FileFormatError: it is written as a difference, or in a format of its own."""
        raise FileFormatError(
            "a layer is given as a whole weight, which this format does not hold."
        )

    @property
    def whole(self) -> Tensor:
        return self.weight

    @property
    def input_width(self) -> int | None:
        return None if self.weight.dim() < 2 else self.weight.shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        return fit(self.weight, weight) - weight

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        return None if self.bias is None else fit(self.bias.to(bias), bias) - bias

    def difference(self) -> Tensor | None:
        if self.origin is None:
            return None
        weight = precise(self.weight)
        return weight - self.origin.to(weight)

    as_low_rank = norm = not_available

"""The ways to merge models, in one list: how many models each takes, what they are, and which of
the settings it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from konomi.errors import RecipeError
from konomi.merging import formulas
from konomi.merging.formulas import Knobs
from konomi.merging.rotation import rotate


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """One way."""

    formula: Callable[[Sequence[Tensor], Knobs], Tensor]
    models: tuple[int, int | None]
    """Fewest and most models; None for any number."""
    roles: str
    """What they are, for messages: `A B`, `A B C`, `A B ... BASE`."""
    by_value: bool
    """Each value depends on those at the same place alone, so a tensor may be merged in pieces."""
    alpha: float | None = None
    """Its usual alpha; None where it has none."""
    beta: float | None = None
    density: float | None = None
    random: bool = False
    """It draws, so the seed counts."""
    rounds_once: bool = False
    """Of half precision it computes in float32 and rounds at the end, as PyTorch's `lerp` does, so
    that its tensors need not be converted first."""
    differences: bool = False
    """What it adds to the first model is a difference between others, so that models of another
    number of input channels can be mixed."""

    @property
    def name(self) -> str:
        return self.formula.__name__


METHODS: tuple[MergeMethod, ...] = (
    MergeMethod(formulas.weighted_sum, (2, 2), "A B", True, alpha=0.5, rounds_once=True),
    MergeMethod(formulas.sigmoid, (2, 2), "A B", True, alpha=0.5, rounds_once=True),
    MergeMethod(formulas.n_average, (2, None), "A B ...", True),
    MergeMethod(formulas.add_difference, (3, 3), "A B BASE", True, alpha=1.0, differences=True),
    MergeMethod(formulas.triple_sum, (3, 3), "A B C", True, alpha=0.33, beta=0.33),
    MergeMethod(formulas.train_difference, (3, 3), "A B BASE", True, alpha=1.0),
    MergeMethod(formulas.perpendicular, (3, 3), "A B BASE", False, alpha=1.0),
    MergeMethod(formulas.slerp, (2, 2), "A B", False, alpha=0.5),
    MergeMethod(formulas.geometric, (2, 2), "A B", True, alpha=0.5),
    MergeMethod(formulas.cosine_a, (2, 2), "A B", False, alpha=0.5),
    MergeMethod(formulas.cosine_b, (2, 2), "A B", False, alpha=0.5),
    MergeMethod(rotate, (2, 2), "A B", False, alpha=1.0),
    MergeMethod(formulas.ties, (2, None), "A B ... BASE", False, alpha=1.0, density=0.2),
    MergeMethod(
        formulas.dare, (2, None), "A B ... BASE", False, alpha=1.0, density=0.5, random=True
    ),
    MergeMethod(
        formulas.della,
        (2, None),
        "A B ... BASE",
        False,
        alpha=1.0,
        beta=0.2,
        density=0.5,
        random=True,
    ),
    MergeMethod(formulas.model_stock, (3, None), "A B ... BASE", False),
    MergeMethod(formulas.geometric_median, (3, None), "A B C ...", False),
    MergeMethod(formulas.top_k, (2, 2), "A B", False, alpha=0.5),
    MergeMethod(formulas.crossover, (2, 2), "A B", False, alpha=0.5),
    MergeMethod(formulas.clamp, (3, None), "A LOW HIGH ...", True),
)
"""In the order in which help and pages list them."""


def method_named(name: str) -> MergeMethod:
    """Raises RecipeError naming those there are."""
    for method in METHODS:
        if method.name == name:
            return method
    raise RecipeError(
        f"--how is {name!r}; choose one of {', '.join(method.name for method in METHODS)}."
    )


def check_count(method: MergeMethod, count: int) -> None:
    """Raises RecipeError where a way does not take so many models."""
    fewest, most = method.models
    if count < fewest or (most is not None and count > most):
        raise RecipeError(f"--how {method.name} merges {method.roles}; {count} models are given.")

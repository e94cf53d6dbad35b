"""What every candidate of a comparison may spend: so many optimiser steps, images or minutes."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from konomi.errors import RecipeError

Unit = Literal["steps", "images", "minutes"]
MOST = {"steps": 10_000_000, "images": 1_000_000_000, "minutes": 60 * 24 * 30}


@dataclass(frozen=True, slots=True)
class Budget:
    """The same for all candidates."""

    unit: Unit
    """`steps` and `images` count pictures that are learned from, so that a larger batch takes fewer
    steps; `minutes` is training time, by a measured step."""
    amount: float

    def __str__(self) -> str:
        return f"{self.unit}={self.amount:g}"

    def steps(
        self, batch_size: int, *, of_first: int = 1, seconds_per_step: float | None = None
    ) -> int:
        """Optimiser steps of a run with this batch size, at least one.

        of_first: the batch size of the first candidate, which `steps` speaks of.
        seconds_per_step: measured; needed for minutes.
        """
        if self.unit == "minutes":
            if seconds_per_step is None:
                raise AssertionError("a step is measured before minutes become steps")
            return max(1, int(60 * self.amount / seconds_per_step))
        images = self.amount if self.unit == "images" else self.amount * of_first
        return max(1, math.ceil(images / batch_size))


def read_budget(text: str) -> Budget:
    """`steps=600`, `minutes=10` or `images=2400`. Raises RecipeError."""
    unit, _, amount = (part.strip() for part in text.partition("="))
    known = next((word for word in get_args(Unit) if word == unit), None)
    if known is None or not re.fullmatch(r"\d+(\.\d+)?", amount):
        raise RecipeError(
            f"--budget is {text!r}; it takes steps=600, images=2400 or minutes=10, the same for "
            "every candidate."
        )
    value = float(amount)
    if not 0 < value <= MOST[known]:
        raise RecipeError(f"--budget is {text!r}; it takes more than 0 and at most {MOST[known]}.")
    if known != "minutes" and value != int(value):
        raise RecipeError(f"--budget is {text!r}; {known} are whole numbers.")
    return Budget(known, value)

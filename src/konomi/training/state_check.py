"""Whether a state read back is one that a trainer can go on from: it may come from elsewhere, or
be made by hand.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from konomi.errors import RunError

_COUNTS = {"step": 0, "phase": 0, "samples_seen": 0, "accumulation": 1, "average_updates": 0}
"""Whole numbers of a state, and their least values."""
_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def check_numbers(numbers: Mapping[str, Any], *, num_phases: int) -> None:
    """Raises RunError naming the entry of state.json that is no such number."""
    for name, least in _COUNTS.items():
        value = numbers.get(name)
        if type(value) is not int or not least <= value < 2**53:
            raise _strange(name, value)
    if numbers["phase"] >= num_phases:
        raise _strange("phase", numbers["phase"])
    scaler, optimizer = numbers.get("scaler"), numbers.get("optimizer")
    if not isinstance(scaler, dict) or not (
        not scaler or all(_is_number(scaler.get(name)) for name in _SCALER)
    ):
        raise _strange("scaler", scaler)
    if not isinstance(optimizer, dict):
        raise _strange("optimizer", optimizer)
    parameters, groups = optimizer.get("parameters"), optimizer.get("groups")
    if not isinstance(parameters, dict) or not isinstance(groups, list):
        raise _strange("optimizer", optimizer)
    for table in (*parameters.values(), *groups):
        if not isinstance(table, dict) or not all(_is_plain(value) for value in table.values()):
            raise _strange("optimizer", table)


def check_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str) -> None:
    """Raises RunError unless both hold the same names with the same shapes."""
    different = sorted(set(ours) ^ set(theirs))
    different += [
        name for name in ours if name in theirs and ours[name].shape != theirs[name].shape
    ]
    if different:
        raise RunError(
            f"the checkpoint trains other {what} than this recipe ({len(different)} differ, first: "
            f"{different[0]}). Resume with the recipe the run was started with."
        )


def same_kind(ours: object, theirs: object) -> bool:
    """Whether a setting of an optimiser may take the place of another: a number of a number, a
    word of a word.
    """
    numbers = (int, float)
    return type(ours) is type(theirs) or (type(ours) in numbers and type(theirs) in numbers)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_plain(value: object) -> bool:
    # Prodigy's bound on growth is infinite.
    return isinstance(value, bool | str | int | float) and value == value


def _strange(name: str, value: object) -> RunError:
    return RunError(
        f"the checkpoint's state.json does not fit this recipe: {name} is {str(value)[:60]!r}. "
        "Resume with the recipe the run was started with, or start anew."
    )

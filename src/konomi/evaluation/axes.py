"""Settings against each other: what an axis of a grid is, and the picture in each of its cells."""

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

from konomi.config.generation import GenerationConfig
from konomi.data.buckets import parse_size
from konomi.errors import RecipeError
from konomi.generation.request import Request

BASE = "base"
"""Among files: none."""
NUMBERS = {"weight": float, "seed": int, "steps": int, "guidance": float,
           "guidance_rescale": float, "clip_skip": int, "eta": float}  # fmt: skip
TEXTS = ("prompt", "negative")
SETTINGS = ("weight", "file", "prompt", "size", "clip_skip", "eta",
            *(field.name for field in fields(GenerationConfig)))  # fmt: skip
MOST_VALUES = 100
MOST_CELLS = 2000


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and its values."""

    setting: str
    values: tuple[Any, ...]
    """Numbers, texts, or paths of files (None: the base alone)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """As they stand in the picture."""
        if self.setting in TEXTS:
            return self.values
        if self.setting == "file":
            return tuple(BASE if value is None else Path(value).stem for value in self.values)
        return tuple(f"{self.setting} {_shown(value)}" for value in self.values)


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of a grid."""

    place: tuple[int, int, int]
    """Number of the value on z, y and x."""
    file: Path | None
    weight: float
    request: Request


def parse_axis(text: str, flag: str) -> Axis:
    """`weight=0.4:1.2:5` (five values from 0.4 to 1.2), `seed=1:4` (1, 2, 3, 4), `steps=10,20,40`,
    `file=a.safetensors,base`, `prompt=a dog; a cat`.

    `flag` is named in messages. Raises RecipeError.
    """
    setting, found, written = text.partition("=")
    setting = setting.strip().replace("-", "_")
    if not found or setting not in SETTINGS:
        close = difflib.get_close_matches(setting, SETTINGS, 1)
        meant = f" Did you mean {close[0]}?" if close else ""
        known = ", ".join(dict.fromkeys(SETTINGS))
        raise RecipeError(
            f"{flag} is {text[:80]!r}; it takes SETTING=VALUES with one of {known}.{meant}"
        )
    values = _values(setting, written, flag)
    if not values:
        raise RecipeError(f"{flag} {setting}: has no value. Write {setting}=VALUE,VALUE.")
    if len(values) > MOST_VALUES:
        raise RecipeError(f"{flag} {setting}: {len(values)} values; at most {MOST_VALUES}.")
    return Axis(setting, tuple(dict.fromkeys(values)))


def cells(
    x: Axis,
    y: Axis,
    z: Axis | None,
    default: Request,
    *,
    file: Path | None = None,
    weight: float = 1.0,
) -> tuple[Cell, ...]:
    """Every combination, row by row.

    default: what no axis says. file: where no axis is of files, at `weight` where none is of
    weights. Raises RecipeError where two axes say the same, or a value cannot be drawn.
    """
    axes = [axis for axis in (z, y, x) if axis is not None]
    settings = [axis.setting for axis in axes]
    if twice := next((one for one in settings if settings.count(one) > 1), None):
        raise RecipeError(f"{twice} stands on two axes. Take another setting for one of them.")
    if "weight" in settings and "file" not in settings and file is None:
        raise RecipeError("weight: of nothing. Name a file with --add FILE, or on another axis.")
    count = len(x.values) * len(y.values) * len(z.values if z is not None else (0,))
    if count > MOST_CELLS:
        raise RecipeError(f"{count} pictures; at most {MOST_CELLS} are drawn into one grid.")
    found = []
    for numbers in product(*(range(len(axis.values)) for axis in axes)):
        given = {axis.setting: axis.values[n] for axis, n in zip(axes, numbers, strict=True)}
        place = numbers if len(axes) == 3 else (0, *numbers)
        found.append(
            Cell(
                (place[0], place[1], place[2]),
                given.pop("file", file),
                given.pop("weight", weight),
                _request(default, given),
            )
        )
    return tuple(found)


def _request(default: Request, given: dict[str, Any]) -> Request:
    if "size" in given:
        width, height = parse_size(given.pop("size"))
        given |= {"width": width, "height": height}
    request = replace(default, **given)
    request.check()
    return request


def _values(setting: str, written: str, flag: str) -> Sequence[Any]:
    if setting in TEXTS:
        return [part.strip() for part in written.split(";") if part.strip()]
    parts = [part.strip() for part in next(csv.reader([written], skipinitialspace=True), [])]
    parts = [part for part in parts if part]
    if setting == "file":
        return [None if part == BASE and not Path(part).exists() else Path(part) for part in parts]
    if setting not in NUMBERS:
        return parts
    return [value for part in parts for value in _numbers(setting, part, flag)]


def _numbers(setting: str, written: str, flag: str) -> list[float]:
    kind = NUMBERS[setting]
    try:
        ends = [kind(end) for end in written.split(":")[:2]]
        count = int(written.split(":")[2]) if written.count(":") == 2 else 0
        if written.count(":") > 2 or not all(map(isfinite, ends)):
            raise ValueError
    except ValueError:
        raise RecipeError(
            f"{flag} {setting}: {written[:40]!r} is none of 3, 1:4 and 0.4:1.2:5 (first, last, how "
            "many)."
        ) from None
    if len(ends) == 1:
        return ends
    first, last = ends
    if not count:
        count = int(abs(last - first)) + 1
    if not 2 <= count <= MOST_VALUES:
        raise RecipeError(
            f"{flag} {setting}: {written} are {count} values; 2 to {MOST_VALUES} can be drawn."
        )
    steps = [first + (last - first) * number / (count - 1) for number in range(count)]
    return [round(step) if kind is int else round(step, 6) for step in steps]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

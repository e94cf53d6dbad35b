"""Reports as plain data for `--json`, and lines for a person."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

from konomi.errors import printable
from konomi.language import translated


def plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and numbers as JSON has them; what is not a finite number becomes
    null.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else label(key): plain(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset) or (
        isinstance(value, Sequence) and not isinstance(value, str | bytes)
    ):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def label(value: Any) -> str:
    """A value as one short text: sizes as 512x768, boxes as left,top,right,bottom, other lists
    with commas.
    """
    if isinstance(value, list | tuple):
        is_size = len(value) == 2 and all(type(item) is int for item in value)
        return ("x" if is_size else ", ").join(str(item) for item in value)
    return printable("" if value is None else str(value))


def json_text(value: Any) -> str:
    """A report as the JSON that `--json` prints: text of every script as it is, and nothing that a
    terminal obeys.
    """
    lines = json.dumps(plain(value), ensure_ascii=False, indent=2).split("\n")
    return "\n".join(line if printable(line) == line else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    # What is not printed stands inside a JSON string, where every character can be written as an
    # escape.
    return "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in line)


def tell(line: str) -> None:
    """Something a person should know and that stops nothing: on standard error, where no program
    mistakes it.
    """
    print(translated(f"note: {translated(printable(line))}"), file=sys.stderr, flush=True)

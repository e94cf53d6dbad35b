"""The folder of a grid: `grid.json`, the picture `grid.png` and the single ones."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from konomi.config.parse import parse_json
from konomi.config.problems import adapter_of
from konomi.errors import FileFormatError
from konomi.storage.atomic import write_text
from konomi.storage.regular import read_small

GRID, PICTURE = "grid.json", "grid.png"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class StoredAxis:
    """A setting and its values as they are shown."""

    setting: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredGrid:
    """What was drawn."""

    base: str
    x: StoredAxis
    y: StoredAxis
    z: StoredAxis | None
    settings: dict[str, str]
    """What no axis says: name -> value."""
    pictures: dict[str, str]
    """`Z-Y-X` (their numbers) -> path relative to the folder; what could not be drawn is absent."""
    failures: tuple[str, ...] = ()
    """Why some could not be drawn, a line each."""


def write_grid(grid: StoredGrid, folder: Path) -> None:
    """Raises RunError for the disk."""
    text = json.dumps(asdict(grid), ensure_ascii=False, indent=1, allow_nan=False)
    write_text(folder / GRID, f"{text}\n")


def read_grid(folder: Path) -> StoredGrid:
    """Raises FileFormatError for what is damaged or none."""
    path = folder / GRID
    content = read_small(path, _MOST_BYTES, "result of an evaluation")
    try:
        grid: StoredGrid = adapter_of(StoredGrid).validate_python(parse_json(content))
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileFormatError(
            f"{path}: is damaged ({reason}). Remove it and run the command again."
        ) from error
    return grid

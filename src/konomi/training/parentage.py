"""`parent.json` in the folder of a run that began as a branch: which run, which step, what changed;
and the same of that run's own parents, so that it is known also when they are gone.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.storage.atomic import write_text
from konomi.storage.regular import read_small

NAME = "parent.json"
MAX_BYTES = 2**20
MOST = 1000
"""Parents in one line, and changes of one branch."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting, as it was and as it is, as plain values."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run branched off."""

    run: str
    """The parent's folder: a path relative to the run's own, with `/`; where there is no such
    path, the name alone."""
    step: int
    """The last step that both have in common."""
    changed: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        """What the parent's folder is called."""
        return PurePosixPath(self.run).name


def write_origins(folder: Path, origins: Sequence[Origin]) -> None:
    """`origins`: the run's own first, then its parent's, and so on. Raises RunError for the
    disk.
    """
    content = {"layout": 1, "origins": [asdict(origin) for origin in origins]}
    write_text(folder / NAME, json.dumps(content, indent=1, default=str) + "\n")


def read_origins(folder: Path) -> tuple[Origin, ...]:
    """A run's own first; empty for a run that is no branch, and where the file is not as konomi
    writes it.
    """
    try:
        content = parse_json(read_small(folder / NAME, MAX_BYTES, "note of a run's parent"))
    except (FileFormatError, ValueError):
        return ()
    listed = content.get("origins") if isinstance(content, dict) else None
    found = []
    for entry in listed[:MOST] if isinstance(listed, list) else ():
        origin = _origin(entry)
        if origin is None:
            break
        found.append(origin)
    return tuple(found)


def line_of(parent: Path, child: Path, step: int, changed: Sequence[Change]) -> tuple[Origin, ...]:
    """The origins of a branch of `parent` that lies in `child`; those of the parent are seen from
    there.
    """
    own = Origin(_relative(parent, child), step, tuple(changed))
    above = (
        replace(origin, run=_relative((parent / origin.run), child))
        for origin in read_origins(parent)
    )
    return (own, *above)


def _relative(there: Path, here: Path) -> str:
    try:
        return Path(os.path.relpath(there.resolve(), here.resolve())).as_posix()
    except ValueError:
        # Another drive of Windows.
        return there.name


def _origin(entry: object) -> Origin | None:
    if not isinstance(entry, dict):
        return None
    run, step, changed = (entry.get(name) for name in ("run", "step", "changed"))
    if not isinstance(run, str) or not run or "\0" in run or type(step) is not int:
        return None
    changes = [
        Change(one["path"], one.get("before"), one.get("after"))
        for one in (changed[:MOST] if isinstance(changed, list) else ())
        if isinstance(one, dict) and isinstance(one.get("path"), str)
    ]
    return Origin(run, step, tuple(changes))

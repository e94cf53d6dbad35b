"""Paths as people write them: `~` at the start, and short; and the folder of caches."""

import os
import sys
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """With a leading `~` or `~USER` replaced by that home folder; as it is, like in a shell,
    without such a user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def shown(path: Path) -> str:
    """From the current folder, so that a command with it can be typed here; as it is where there
    is no such way (another drive).
    """
    try:
        return Path(os.path.relpath(path)).as_posix()
    except ValueError:
        return str(path)


def cache_root() -> Path:
    """The system's usual place for what can be made again."""
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "konomi"

"""Paths as people write them: `~` at the start, and short."""

import os
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

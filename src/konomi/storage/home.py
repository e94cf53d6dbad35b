"""`~` at the start of a path."""

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """With a leading `~` or `~USER` replaced by that home folder; as it is, like in a shell,
    without such a user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)

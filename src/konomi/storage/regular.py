"""Files that are files: no pipe, device, socket or link is opened where a folder from elsewhere
names one.
"""

import os
import stat
from pathlib import Path

from konomi.errors import FileFormatError

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular(path: Path, what: str) -> int:
    """The size of a regular file in bytes; a link to one counts as none. Opens nothing.

    Raises FileFormatError saying what is there instead, or that nothing is.
    """
    try:
        status = path.lstat()
    except FileNotFoundError as missing:
        raise FileFormatError(f"{path}: the {what} is missing.") from missing
    except (OSError, ValueError) as unreadable:
        raise FileFormatError(f"{path}: the {what} cannot be read ({unreadable}).") from unreadable
    if not stat.S_ISREG(status.st_mode):
        found = next(
            (name for test, name in _KINDS if test(status.st_mode)),
            "something that is not a regular file",
        )
        raise FileFormatError(f"{path}: is {found}, where a {what} should be; it is not opened.")
    return status.st_size


def read_small(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a regular file of at most `limit`. Raises FileFormatError."""
    size = check_regular(path, what)
    if size > limit:
        raise FileFormatError(
            f"{path}: is {size} bytes long, far too much for a {what}. It is not read."
        )
    # Without waiting for a writer, should the file have become a pipe since.
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            return file.read(limit)
    except OSError as unreadable:
        raise FileFormatError(f"{path}: cannot be read ({unreadable.strerror}).") from unreadable

"""What nobody expected: one line for the person, and a file with everything for whoever
mends it.
"""

import contextlib
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from konomi import __version__
from konomi.errors import printable

KEPT = 20
"""Files with details that are kept; older ones go."""


def explain_failure(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the details of an unexpected error to a file. Returns the one line that says what
    happened and where.
    """
    # Of the traceback module's own making, which holds even where `str(error)` itself raises.
    words = " ".join(" ".join(traceback.format_exception_only(error)).split())
    shown = printable(words[:240])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = "It needs more memory than there is: smaller pictures or batches need less."
    else:
        advice = "This is a bug in konomi."
    where = _write(_details(error, arguments))
    told = (
        f"The details are in {where}; please report them."
        if where
        else "KONOMI_DEBUG=1 shows the details."
    )
    return f"Unexpected error: {shown.rstrip('.')}. {advice} {told}"


def _details(error: BaseException, arguments: Sequence[str]) -> str:
    head = (
        f"konomi {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"konomi {' '.join(arguments)}\nin {_here()}\n\n"
    )
    return head + "".join(traceback.format_exception(error))


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - as it is spelt, and it may be gone
    except OSError:
        return "a folder that is gone"


def _write(text: str) -> Path | None:
    """The file that now holds the text; None where no folder takes it."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (_state_folder(), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, RuntimeError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            for old in sorted(folder.glob("error-*-*-*.txt"))[:-KEPT]:
                old.unlink(missing_ok=True)
            return path
    return None


def _state_folder() -> Path:
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Logs"
    else:
        root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return root / "konomi"

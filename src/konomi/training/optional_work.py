"""Work that is worth nothing beside the run: a preview, a measurement, a record elsewhere."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from konomi.errors import KonomiError


@contextmanager
def optional_work(what: str, notes: list[str]) -> Iterator[None]:
    """Whatever is raised inside becomes one note, "WHAT: reason", and what comes after goes on.

    Only for work without which the run is whole, and which leaves the model as it found it in any
    case. Ctrl-C, `SystemExit` and the closing of a generator pass.
    """
    try:
        yield
    except Exception as problem:  # noqa: BLE001 - hours of training must not end at a drawing, whatever is wrong with it
        notes.append(f"{what}: {reason_of(problem)}")


def reason_of(error: BaseException) -> str:
    """What an error says, in one line; with its kind, where it was not written for people."""
    # The traceback module holds even where `str(error)` itself raises.
    words = " ".join(" ".join(traceback.format_exception_only(error)).split())
    if isinstance(error, KonomiError):
        words = words.partition(": ")[2]
    return words[:300] or type(error).__name__

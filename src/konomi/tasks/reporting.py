"""`report`: the page of a run, an evaluation or a comparison; and the one that every run ends with."""

import os
from collections.abc import Iterator
from pathlib import Path

from konomi.evaluation.page import NAME, write_page
from konomi.training.events import Event, Warned
from konomi.training.optional_work import optional_work

SWITCH = "KONOMI_REPORT"
"""Environment variable; with "off" runs end without a page."""


def report(folder: str | Path, *, language: str | None = None) -> Path:
    """Write `report.html`, one file that needs nothing else, from what lies in a folder.

    folder: a run folder, or one that `evaluate` or `compare` wrote.
    language: `en` or `ja`; by default that of the environment.

    Returns the page's path. Raises KonomiError for anything the user can mend.
    """
    return write_page(Path(folder), language=language)


def ends_with_page() -> bool:
    """Whether a finished run has a page."""
    return os.environ.get(SWITCH) != "off"


def page_of_run(folder: Path) -> Iterator[Event | Path]:
    """The page's path, or why there is none: the run is whole without it."""
    notes: list[str] = []
    with optional_work(f"{NAME} could not be written", notes):
        yield write_page(folder)
    yield from map(Warned, notes)

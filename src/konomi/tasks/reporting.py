"""`report`: the page of a run, an evaluation or a comparison. Every run ends with one."""

import os
from pathlib import Path

from konomi.evaluation.page import NAME, write_page
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


def page_of_run(folder: Path, notes: list[str]) -> str:
    """The path of the page that a run ends with. Empty where it cannot be written, without which
    the run is whole: `notes` then says why.
    """
    with optional_work(f"{NAME} could not be written", notes):
        return str(write_page(folder))
    return ""

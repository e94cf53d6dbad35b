"""The page that a person looks at: `report.html`, one file that needs nothing else."""

import re
from pathlib import Path

from konomi.errors import FileFormatError, RunError
from konomi.evaluation.page.texts import Words
from konomi.language import language as language_of_reader
from konomi.storage.atomic import write_text
from konomi.storage.regular import check_regular

NAME = "report.html"
_STEP = re.compile(rb'<meta name="konomi-step" content="(\d{1,12})">')
_HEAD = 2000
"""Bytes in which a page says its step."""


def write_page(folder: Path, *, language: str | None = None) -> Path:
    """Write `report.html` from what lies in a run folder, or in the folder of an evaluation, a
    comparison or a grid. Parts that are not there are left out.

    folder: holds `summary.json`, `grid.json`, or `recipe.toml` or `log.jsonl`.
    language: `en` or `ja`; by default the reader's.

    Returns its path. Raises RunError for a folder that is none of these, and for the disk.
    """
    from konomi.evaluation.grid_store import GRID, read_grid
    from konomi.evaluation.page.comparison_part import comparison_page
    from konomi.evaluation.page.grid_part import grid_page
    from konomi.evaluation.page.rendering import html_of
    from konomi.evaluation.page.training_part import training_page
    from konomi.evaluation.store import SUMMARY, read_summary

    words = Words(language or language_of_reader())
    if (folder / SUMMARY).is_file():
        page = comparison_page(folder, read_summary(folder), words)
    elif (folder / GRID).is_file():
        page = grid_page(folder, read_grid(folder), words)
    elif any((folder / name).is_file() for name in ("recipe.toml", "log.jsonl")):
        page = training_page(folder, words)
    else:
        raise RunError(
            f"{folder}: neither a run folder nor that of a comparison (no recipe.toml, log.jsonl "
            "or summary.json in it). Name the folder that `train`, `evaluate` or `compare` wrote "
            "to."
        )
    path = folder / NAME
    write_text(path, html_of(page))
    return path


def step_of_page(folder: Path) -> int | None:
    """The step of the run whose page lies in a folder; None without one."""
    try:
        check_regular(folder / NAME, "report")
        with (folder / NAME).open("rb") as file:
            found = _STEP.search(file.read(_HEAD))
    except (FileFormatError, OSError):
        return None
    return int(found[1]) if found else None

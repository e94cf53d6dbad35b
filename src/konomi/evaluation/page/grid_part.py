"""The page of a grid: settings against each other."""

from pathlib import Path

from konomi.evaluation.grid_store import StoredGrid
from konomi.evaluation.page.content import Column, Fact, Grid, Page, Row
from konomi.evaluation.page.pictures import embedded
from konomi.evaluation.page.texts import Words
from konomi.language import translated

BUDGET = 12 * 2**20
"""Bytes of the page for all pictures."""


def grid_page(folder: Path, grid: StoredGrid, words: Words) -> Page:
    """Everything that was drawn; `folder` holds the pictures."""
    shown = embedded(grid.pictures.values(), beside=folder, budget=BUDGET)
    columns = tuple(Column(label) for label in grid.x.labels)
    sheets = grid.z.labels if grid.z is not None else ("",)
    grids = []
    for z, title in enumerate(sheets):
        rows = tuple(
            Row(
                label,
                tuple(
                    shown.get(grid.pictures.get(f"{z}-{y}-{x}", "")) for x in range(len(columns))
                ),
            )
            for y, label in enumerate(grid.y.labels)
        )
        grids.append(Grid(title, "", columns, rows, has_base=False))
    axes = [grid.x, grid.y, *([grid.z] if grid.z is not None else [])]
    return Page(
        title=words("title_grid"),
        lead=" × ".join(axis.setting for axis in axes),
        language=words.language,
        grids=tuple(grids),
        grids_title=words("grids_sheet"),
        grids_note=words("grids_sheet_note"),
        facts=(
            Fact(words("fact_base"), grid.base),
            *(Fact(name, value) for name, value in grid.settings.items()),
        ),
        notes=tuple(translated(failure, words.language) for failure in grid.failures),
    )

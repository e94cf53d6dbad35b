"""The picture of an extraction: how fast the singular values of each layer fall, and what each
layer loses.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from konomi.errors import RecipeError
from konomi.families.family import DENOISER
from konomi.merging.extract import Extracted
from konomi.storage.atomic import write_file
from konomi.tasks.files import check_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""


def check_picture(path: Path) -> None:
    """Raises RecipeError for another format than .png and .svg, or where something stands."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise RecipeError(f"--picture {path}: a picture is a .png or .svg file.")
    check_new(path)


def draw_extraction(found: Extracted, path: Path) -> None:
    """Write the picture. matplotlib is imported here, because it takes a second."""
    # It advises on caches and fonts between the lines of the command.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = dict.fromkeys(_group(layer.key) for layer in found.report)
    colours = {group: _COLOURS[n % len(_COLOURS)] for n, group in enumerate(groups)}
    _draw_values(left, found, colours)
    _draw_errors(right, found, colours)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(linewidth=0.5, alpha=0.4)
        axes.set_axisbelow(True)
    with write_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata=_no_date(path))


def _draw_values(axes: Axes, found: Extracted, colours: dict[str, str]) -> None:
    shown: set[str] = set()
    for key, values in found.spectra.items():
        label = _group(key)
        kept = [value / values[0] for value in values if value > 1e-9 * values[0]]
        axes.plot(
            range(1, len(kept) + 1),
            kept,
            color=colours[label],
            linewidth=0.8,
            alpha=0.5,
            label=None if label in shown else label,
            marker="." if len(kept) == 1 else None,
        )
        shown.add(label)
    axes.set_yscale("log")
    axes.set_xlabel("direction")
    axes.set_ylabel("singular value / largest")
    axes.legend(fontsize=8, frameon=False)


def _draw_errors(axes: Axes, found: Extracted, colours: dict[str, str]) -> None:
    axes.bar(
        range(len(found.report)),
        [layer.error for layer in found.report],
        width=1.0,
        color=[colours[_group(layer.key)] for layer in found.report],
    )
    axes.set_xlabel("layer, in the order of the file")
    axes.set_ylabel("share of the change that is missed")
    axes.set_ylim(bottom=0)


def _group(key: str) -> str:
    """A text encoder, or a stage of the denoiser."""
    part, _, path = key.partition(".")
    return f"{part}.{path.partition('.')[0]}" if part == DENOISER else part


def _no_date(path: Path) -> dict[str, None]:
    """So that the same extraction gives the same bytes."""
    return {"Date": None} if path.suffix.lower() == ".svg" else {}

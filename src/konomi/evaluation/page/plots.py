"""Curves and points as SVG inside the page. Words stand beside a drawing, not in it, so that any
script can be read; colours are names of the style sheet, so that light and dark both work.

matplotlib is imported when something is drawn.
"""

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("ink", "soft", "line", "page", "mark", "pale")
"""Of the style sheet, `var(--NAME)`."""
SERIES = tuple(f"series-{number}" for number in range(8))
DRIFTS = tuple(f"drift-{number}" for number in range(5))
"""From little to much."""
WIDTH, LETTER = 460, 6.6
"""Of a drawing and of a figure on its axes, in pixels."""
MOST_POINTS = 500
"""Of a curve; more are not seen at this width."""

_NAMES = (*COLOURS, *SERIES, *DRIFTS)
_LEFT_OUT = re.compile(
    r' font-family: [^;"]*;|<style .*?</style>| (?:width|height)="[\d.]+pt"', re.S
)
"""Fonts and sizes are the page's; a style inside would hold for all of it."""
_IDENTIFIED = re.compile(r'<g id="(?:figure|axes|patch|matplotlib|line2d|xtick|ytick|text)[^"]*">')


@dataclass(frozen=True, slots=True)
class Curve:
    """One line. Steps and values of equal length, at least two."""

    steps: Sequence[float]
    values: Sequence[float]
    colour: str = "mark"
    width: float = 1.8
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate in the picture of a trade-off: (value, low, high) of each axis."""

    across: tuple[float, float, float]
    up: tuple[float, float, float]
    label: str
    """A number, or empty for the base."""
    colour: str
    kept: bool = False


def curves(
    lines: Sequence[Curve],
    *,
    height: float = 2.2,
    top: float | None = None,
    bottom: float | None = None,
) -> str:
    """Lines over steps. `top`, `bottom`: where the axis ends, by default where the lines do."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(height)
    for line in lines:
        stride = -(-len(line.steps) // MOST_POINTS)
        axes.plot(
            line.steps[::stride],
            line.values[::stride],
            color=_paint(line.colour),
            linewidth=line.width,
            linestyle=(0, (4, 3)) if line.dashed else "-",
            marker="o" if line.dots else None,
            markersize=4,
            solid_capstyle="round",
            solid_joinstyle="round",
        )
    axes.margins(x=0.01)
    axes.set_ylim(bottom=bottom, top=top)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    return _svg(figure, axes)


def trade_off(points: Sequence[Point]) -> str:
    """Points with bars for their intervals; the base as a hollow square."""
    figure, axes = _figure(3.6)
    for point in points:
        across, up = point.across, point.up
        paint = _paint(point.colour)
        axes.plot([across[1], across[2]], [up[0], up[0]], color=paint, linewidth=1, alpha=0.7)
        axes.plot([across[0], across[0]], [up[1], up[2]], color=paint, linewidth=1, alpha=0.7)
    for point in sorted(points, key=lambda one: one.kept):
        axes.plot(
            point.across[0],
            point.up[0],
            marker="o" if point.label else "s",
            markersize=18 if point.kept else 14,
            color=_paint(point.colour if point.label else "page"),
            markeredgecolor=_paint("mark" if point.kept else "page" if point.label else "ink"),
            markeredgewidth=3 if point.kept else 1.2,
        )
        axes.text(
            point.across[0],
            point.up[0],
            point.label,
            color=_paint("page"),
            fontsize=8.5,
            fontweight="bold",
            ha="center",
            va="center_baseline",
        )
    axes.margins(0.12)
    return _svg(figure, axes)


def smoothed(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Running mean with bias correction (Kingma & Ba 2015, section 3)."""
    result, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = decay * mean + (1 - decay) * value
        result.append(mean / (1 - decay**count))
    return result


def _paint(name: str) -> str:
    """A colour that stands for a name until the SVG is written."""
    return f"#0000{_NAMES.index(name) + 1:02x}"


def _figure(height: float) -> "tuple[Figure, Axes]":
    # It advises on caches and fonts in the middle of a run's lines.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height), dpi=72)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_paint("line"))
    axes.tick_params(color=_paint("line"), labelcolor=_paint("soft"), labelsize=11)
    axes.grid(color=_paint("line"), linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: "Figure", axes: "Axes") -> str:
    from matplotlib import rc_context

    # matplotlib's own layout would draw everything twice.
    labels = axes.yaxis.get_major_formatter().format_ticks(list(axes.get_yticks()))
    left = (max(map(len, labels), default=0) * LETTER + 8) / WIDTH
    height = figure.get_figheight() * 72
    figure.subplots_adjust(left=left, right=1 - 14 / WIDTH, bottom=20 / height, top=1 - 5 / height)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "konomi"}):
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = _IDENTIFIED.sub("<g>", _LEFT_OUT.sub("", drawing))
    for number, name in enumerate(_NAMES, 1):
        drawing = drawing.replace(f"#0000{number:02x}", f"var(--{name})")
    return drawing

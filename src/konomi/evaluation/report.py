"""A page to look at: pictures side by side, the loss, and what to do next. One HTML file that
needs nothing else.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from konomi.evaluation.change import Finding
from konomi.storage.atomic import write_text

STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --soft: #6a737d; --line: #d8dee4; --page: #fbfaf7;
  --mark: #c4552d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e3dc; --soft: #9aa3ad; --line: #3a4048; --page: #1b1e22; --mark: #ef8a5f; }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--ink);
  font: 16px/1.55 system-ui, "Hiragino Sans", "Noto Sans JP", sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem }
p { margin: .4rem 0 } .soft { color: var(--soft) }
code, pre { font: 13.5px/1.5 ui-monospace, monospace }
pre { background: color-mix(in srgb, var(--ink) 6%, transparent); padding: .8rem 1rem;
  border-radius: 8px; overflow-x: auto }
table { border-collapse: collapse } .scroll { overflow-x: auto }
th { text-align: left; font-weight: 600; padding: .3rem .8rem .3rem 0; vertical-align: bottom }
td { padding: .3rem .8rem .3rem 0; vertical-align: top }
.facts td:first-child { color: var(--soft) }
.grid th, .grid td { padding: .35rem }
.grid th:first-child { min-width: 8rem; max-width: 13rem; vertical-align: middle }
.grid .soft { font-weight: 400 }
.grid img { display: block; width: 7.4rem; height: auto; border-radius: 6px; border: 1px solid
  var(--line) }
.findings { list-style: none; padding: 0 } .good { color: #2e8b57 } .bad { color: var(--mark) }
.pair { display: flex; gap: .35rem } svg { max-width: 100%; height: auto }
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the grid: what was asked, and one or more pictures for each column."""

    label: str
    note: str
    cells: tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures side by side; the columns are e.g. base and tuned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything on the page, top to bottom."""

    title: str
    summary: str
    samples: tuple[Image.Image, ...]
    """What was trained on."""
    grids: tuple[Grid, ...]
    losses: tuple[float, ...]
    """One a step; drawn smoothed over the raw values."""
    facts: tuple[tuple[str, str], ...]
    next_steps: tuple[tuple[str, str], ...]
    """(sentence, command)."""
    findings: tuple[Finding, ...] = ()
    """What is seen on the pictures, measured."""
    method: str = ""
    """How the findings were measured."""


def write_report(report: Report, path: Path) -> None:
    """Write the page; pictures are inside it. Raises RunError for the disk."""
    parts = [
        f"<h1>{html.escape(report.title)}</h1>",
        f"<p>{html.escape(report.summary)}</p>",
        _findings(report),
        "<h2>What it learned from</h2>",
        f'<div class="pair scroll">{"".join(_picture(image) for image in report.samples)}</div>',
        *(_grid(grid) for grid in report.grids),
        "<h2>Loss</h2>",
        loss_curve(report.losses),
        "<h2>The run</h2>",
        _facts(report.facts),
        "<h2>What next</h2>",
        *(
            f"<p>{html.escape(say)}</p><pre>{html.escape(command)}</pre>"
            for say, command in report.next_steps
        ),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><style>{STYLE}</style>'
    )
    title = html.escape(report.title)
    write_text(
        path,
        "<!doctype "
        f"html><html><head>{head}<title>{title}</title></head><body>{''.join(parts)}</body></html>",
    )


def smoothed(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Running mean with bias correction (Kingma & Ba 2015, section 3)."""
    result, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = decay * mean + (1 - decay) * value
        result.append(mean / (1 - decay**count))
    return result


def loss_curve(losses: Sequence[float], width: int = 720, height: int = 180) -> str:
    """An SVG: raw losses pale, the smoothed line over them. At most 600 points, whatever the
    length of the run.
    """
    if len(losses) < 2:
        return '<p class="soft">Too few steps for a curve.</p>'
    stride = -(-len(losses) // 600)
    raw, line = losses[::stride], smoothed(losses)[::stride]
    top = sorted(raw)[int(0.98 * (len(raw) - 1))] * 1.05 or 1.0

    def points(values: Sequence[float]) -> str:
        step = (width - 50) / max(len(values) - 1, 1)
        return " ".join(
            f"{44 + index * step:.1f},{height - 24 - min(value / top, 1) * (height - 34):.1f}"
            for index, value in enumerate(values)
        )

    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="loss by step">'
        f'<line x1="44" y1="{height - 24}" x2="{width - 6}" y2="{height - 24}" '
        'stroke="var(--line)"/>'
        f'<polyline fill="none" stroke="var(--line)" points="{points(raw)}"/>'
        f'<polyline fill="none" stroke="var(--mark)" stroke-width="2" points="{points(line)}"/>'
        f'<g fill="var(--soft)" font-size="12"><text x="0" y="16">{top:.3f}</text>'
        f'<text x="0" y="{height - 20}">0</text>'
        f'<text x="44" y="{height - 6}">step 1</text>'
        f'<text x="{width - 6}" y="{height - 6}" text-anchor="end">step '
        f"{len(losses)}</text></g></svg>"
    )


def _findings(report: Report) -> str:
    if not report.findings:
        return ""
    marks = {True: ("good", "✓"), False: ("bad", "✗")}
    items = "".join(
        f'<li><b class="{marks[one.good][0]}">{marks[one.good][1]}</b> {html.escape(one.text)}</li>'
        for one in report.findings
    )
    return f'<ul class="findings">{items}</ul><p class="soft">{html.escape(report.method)}</p>'


def _grid(grid: Grid) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in grid.columns)
    rows = []
    for row in grid.rows:
        cells = "".join(
            f'<td><div class="pair">{"".join(map(_picture, cell))}</div></td>' for cell in row.cells
        )
        label = f'{html.escape(row.label)}<br><span class="soft">{html.escape(row.note)}</span>'
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    return (
        f'<h2>{html.escape(grid.title)}</h2><div class="scroll"><table class="grid">'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in facts
    )
    return f'<table class="facts">{rows}</table>'


def _picture(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" '
        'alt="">'
    )

"""The pre-flight table of `konomi check`."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from konomi.cli.plain import label, printable
from konomi.cli.screen import screen, seconds_text

if TYPE_CHECKING:
    from konomi.tasks import CheckReport

SHOWN = 40
"""Rows before a long table is cut."""


def print_check(report: "CheckReport", *, show_all: bool = False) -> None:
    """The table, what is left out, what is wrong, how many steps, how long."""
    console = screen()
    shown = report.rows if show_all else _chosen(report.rows)
    console.print(_table(shown))
    if hidden := len(report.rows) - len(shown):
        console.print(f"... and {hidden} more images; --all shows them.")
    for excluded in report.excluded:
        console.print(Text(f"left out: {_excluded(excluded)}", style="yellow"))
    for problem in report.problems:
        console.print(Text(f"note: {printable(str(problem))}", style="yellow"))
    console.print(Text(report.sentence, style="bold"))
    if report.estimate_seconds is not None:
        console.print(f"About {seconds_text(report.estimate_seconds)} on this machine.")


def _chosen(rows: Any) -> list[Any]:
    """The first rows, but every row with a problem before those without, as far as there is room."""
    if len(rows) <= SHOWN:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda index: not rows[index].problem)[:SHOWN]
    return [rows[index] for index in sorted(order)]


def _table(rows: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    with_problems = any(row.problem for row in rows)
    table.add_column("image", overflow="fold", no_wrap=False)
    table.add_column("caption", overflow="fold", ratio=1)
    for name in ("bucket", "crop", "repeats"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_problems:
        table.add_column("problem", overflow="fold")
    for row in rows:
        cells = [Text(label(value)) for value in (row.name, row.caption, row.bucket, row.crop, row.repeats)]
        if with_problems:
            cells.append(Text(label(row.problem), style="red"))
        table.add_row(*cells)
    return table


def _excluded(excluded: Any) -> str:
    """An excluded image, whether it is told as text or as a record with a name and a reason."""
    name, reason = getattr(excluded, "name", None), getattr(excluded, "reason", None)
    return printable(f"{name}: {reason}" if name is not None and reason is not None else str(excluded))

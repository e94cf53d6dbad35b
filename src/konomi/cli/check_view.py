"""The pre-flight table of `konomi check`."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from konomi.cli.plain import label
from konomi.cli.screen import screen, seconds_text
from konomi.errors import printable
from konomi.language import translated, translated_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from konomi.tasks import CheckReport, CheckRow

MAX_LISTED = 10
"""Names that a note's own line holds."""
SHOWN = 40
"""Rows before a long table is cut."""


def print_check(report: "CheckReport", *, show_all: bool = False) -> None:
    """The table, what is left out, what is wrong, how many steps, how long."""
    console = screen()
    shown = list(report.rows) if show_all else _chosen(report.rows)
    console.print(_table(shown))
    if hidden := len(report.rows) - len(shown):
        console.print(translated(f"... and {hidden} more images; --all shows them."))
    for name, reason in report.excluded[: None if show_all else SHOWN]:
        console.print(Text(translated(printable(f"left out: {name}: {reason}")), style="yellow"))
    if not show_all and len(report.excluded) > SHOWN:
        console.print(
            translated(
                f"... and {len(report.excluded) - SHOWN} more are left out; --all shows them."
            )
        )
    for problem in report.problems:
        stops = problem in report.stops
        told = translated(printable(problem))
        line = f"stops: {told}" if stops else f"note: {told}"
        console.print(Text(translated(line), style="red" if stops else "yellow"))
    if show_all:
        for finding in report.findings:
            if len(finding.names) > MAX_LISTED:
                told = f"all {len(finding.names)} of: {printable(finding.message)}"
                console.print(Text(translated(told), style="dim"))
                console.print(Text("\n".join(f"  {printable(name)}" for name in finding.names)))
    if report.nouns:
        listed = ", ".join(f"{noun} ({share:.2f})" for noun, share in report.nouns)
        console.print(
            Text(translated(f"class noun: {listed}? Give --class NOUN with the one that is right."))
        )
    console.print(Text(translated_sum(report.sentence), style="bold"))
    if report.trainable:
        console.print(Text(translated(printable(report.trainable))))
    if report.seconds is None:
        console.print(
            Text(translated("How long that takes: add --time to measure it."), style="dim")
        )
    else:
        console.print(
            Text(translated(f"about {seconds_text(report.seconds)}, without encoding and previews"))
        )


def _chosen(rows: "Sequence[CheckRow]") -> "list[CheckRow]":
    """The first rows, but every row with a problem before those without, as far as there is
    room.
    """
    if len(rows) <= SHOWN:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda index: not rows[index].problem)[:SHOWN]
    return [rows[index] for index in sorted(order)]


def _table(rows: "list[CheckRow]") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    with_problems = any(row.problem for row in rows)
    with_roles = any(row.role != "train" for row in rows)
    table.add_column(translated("image"), overflow="fold", no_wrap=False)
    table.add_column(translated("caption"), overflow="fold", ratio=1)
    for name in ("bucket", "crop", "repeats"):
        table.add_column(translated(name), justify="right", no_wrap=True)
    if with_roles:
        table.add_column(translated("role"))
    if with_problems:
        table.add_column(translated("problem"), overflow="fold")
    for row in rows:
        cells = [
            Text(label(value))
            for value in (row.name, row.caption, row.bucket, row.crop, row.repeats)
        ]
        if with_roles:
            cells.append(Text(row.role))
        if with_problems:
            cells.append(Text(label(translated(row.problem)), style="red"))
        table.add_row(*cells)
    return table

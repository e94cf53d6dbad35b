"""What `konomi inspect` and `konomi doctor` show."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from konomi.cli.plain import label
from konomi.cli.screen import screen
from konomi.errors import printable
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.formats.report import FileReport
    from konomi.tasks import DoctorReport

LONGEST = 400
"""Characters of one value; training metadata can hold whole tag lists."""
SHOWN = 60
"""Entries of one table."""
SAID = ("path", "readers", "notes")
"""Fields that the verdict tells whole."""
LISTED = 5
"""Entries of one list."""


def print_file(path: Path, report: "FileReport", *, everything: bool = False) -> None:
    """The verdict: what it is, what calls it, where it works, whether it is sound. With
    `everything`, each field of the report that says something as well, in its own order.
    """
    from konomi.cli.verdict import verdict

    console = screen()
    console.print(Text(printable(str(path)), style="bold"))
    table = _two_columns()
    for label_, lines in verdict(report):
        table.add_row(
            Text(translated(label_)), Text("\n".join(_cut(_line(label_, line)) for line in lines))
        )
    if not everything:
        table.add_row(
            Text("--all"), Text(translated("shows metadata, hashes, types and sizes"), style="dim")
        )
        console.print(Padding(table, (0, 0, 1, 2)))
        return
    table.add_row(Text(""), Text(""))
    for field in dataclasses.fields(report):
        value = getattr(report, field.name)
        if (
            field.name in SAID
            or value is None
            or value == ""
            or value == ()
            or value == {}
            or value == []
        ):
            continue
        table.add_row(Text(field.name.replace("_", " ")), _value(value))
    console.print(Padding(table, (0, 0, 1, 2)))


def print_doctor(report: "DoctorReport") -> None:
    """One line for each finding, and the advice there is about it below."""
    console = screen()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in report.rows:
        mark = Text(translated("ok"), style="green") if row.ok else Text("!!", style="bold red")
        text = Text(translated(printable(row.value)))
        if row.advice:
            text.append(
                f"\n{translated(printable(row.advice))}", style="dim" if row.ok else "yellow"
            )
        table.add_row(mark, Text(translated(row.what)), text)
    console.print(table)


def _line(label_: str, line: str) -> str:
    """A line of the verdict in the reader's language, which is looked up with its label: alone it
    says too little.
    """
    head = f"{label_}: "
    told = translated(head + printable(line))
    return told.removeprefix(head) if told.startswith(head) else told.partition(": ")[2]


def _two_columns() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _value(value: Any) -> Text | Table:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        value = {
            name: entry
            for name, entry in entries.items()
            if entry is not None and entry != "" and entry != ()
        }
    if isinstance(value, Mapping):
        table = _two_columns()
        for index, (key, item) in enumerate(value.items()):
            if index == SHOWN:
                table.add_row(
                    Text("..."), Text(translated(f"{len(value) - SHOWN} more; --json shows them"))
                )
                break
            table.add_row(Text(label(key)), _value(item))
        return table
    if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
        lines = [_cut(label(item)) for item in value[:LISTED]]
        if len(value) > LISTED:
            lines.append(
                translated(
                    f"... and {len(value) - LISTED} more ({len(value)} in all); --json shows them"
                )
            )
        return Text("\n".join(lines))
    if isinstance(value, bool):
        return Text(translated("yes" if value else "no"))
    if isinstance(value, int):
        return Text(f"{value:,}")
    return Text(_cut(label(value)))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"

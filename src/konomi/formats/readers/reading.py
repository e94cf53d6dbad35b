"""What a program makes of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One program, one file."""

    reader: str
    used: int
    """How many of `total` it uses as they are meant."""
    total: int
    unit: str = "layers"
    ignored: tuple[str, ...] = ()
    """What it ignores, drops or misreads, and why; one sentence for each reason."""
    place: str = ""
    """Where the program looks for such files, or how it is told of one."""


def counted(
    reader: str,
    names: Iterable[str],
    faults: Mapping[str, str],
    *,
    unit: str = "layers",
    place: str = "",
) -> Reading:
    """From name -> why it is not used. The same reason is given once, with how many and the first
    of them.
    """
    names = list(names)
    reasons: dict[str, list[str]] = {}
    for name in names:
        if name in faults:
            reasons.setdefault(faults[name], []).append(name)
    said = tuple(f"{_number(found, unit)}: {reason}" for reason, found in reasons.items())
    return Reading(
        reader, len(names) - sum(map(len, reasons.values())), len(names), unit, said, place
    )


def refused(
    reader: str, names: Iterable[str], reason: str, *, unit: str = "layers", place: str = ""
) -> Reading:
    """A file that the program does not load at all."""
    return Reading(reader, 0, len(list(names)), unit, (reason,), place)


def sentences(readings: Iterable[Reading]) -> tuple[str, ...]:
    """`264 of 264 layers used by ComfyUI, A1111, diffusers`, then one line for each program that
    ignores something.
    """
    readings = tuple(readings)
    whole: dict[tuple[int, str], list[str]] = {}
    for reading in readings:
        if reading.used == reading.total and not reading.ignored:
            whole.setdefault((reading.total, reading.unit), []).append(reading.reader)
    lines = [
        f"{total} of {total} {_unit(unit, total)} used by {', '.join(who)}"
        for (total, unit), who in whole.items()
    ]
    for reading in readings:
        if reading.used != reading.total or reading.ignored:
            head = (
                f"{reading.used} of {reading.total} {_unit(reading.unit, reading.total)} used "
                f"by {reading.reader}"
            )
            lines.append(f"{head}: {'; '.join(reading.ignored)}")
    return tuple(lines)


def _number(found: list[str], unit: str) -> str:
    first = found[0] if len(found[0]) <= 90 else f"{found[0][:90]}..."
    return first if len(found) == 1 else f"{len(found)} {unit} ({first}, ...)"


def _unit(unit: str, count: int) -> str:
    return unit.removesuffix("s") if count == 1 else unit

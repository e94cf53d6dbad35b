"""What of a file no reader used: found for every format alike, from what its reader says it did
use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from konomi.errors import printable
from konomi.formats.source import Parsed, Source

METADATA = "metadata "
"""Before the name of a header entry, in `Parsed.used` and `Parsed.ignored`."""
_NO_PLACE = "has no place in what konomi reads of this format"
_UNREAD_ENTRY = "a header entry on the scale, which konomi does not read in this format"
_SCALES = (
    "alpha",
    "rank",
    "scale",
    "scaling",
    "weight",
    "strength",
    "multiplier",
    "r",
    "dim",
    "lora_adapter_metadata",
)
_DESCRIPTIVE = ("ss_", "sshs_", "modelspec.", "konomi.")
"""Beginnings of entries that tell how a file came about; what it does is in its tensors."""
_NAMED = 3


def with_unused_named(source: Source, parsed: Parsed) -> Parsed:
    """The same, with every tensor, field and telling header entry that the reader left out among
    `ignored`.
    """
    ignored = dict(parsed.ignored)
    known = parsed.used | ignored.keys() | set(parsed.unknown)
    ignored |= {name: _NO_PLACE for name in source.names if name not in known}
    ignored |= {
        f"{METADATA}{name}": _UNREAD_ENTRY
        for name in source.metadata
        if f"{METADATA}{name}" not in known and _tells_scale(name) and name not in source.shapes
    }
    return replace(parsed, ignored=ignored)


def lines(where: str, parsed: Parsed) -> tuple[str, ...]:
    """`ignored` and `notes` as sentences, what is ignored for one reason in one line."""
    reasons: dict[str, list[str]] = {}
    for name, why in parsed.ignored.items():
        reasons.setdefault(why, []).append(name)
    found = [f"{where}: {_listed(names)} not used: {why}." for why, names in reasons.items()]
    return tuple(
        printable(line) for line in (*found, *(f"{where}: {note}" for note in parsed.notes))
    )


def joined(parts: Iterable[Parsed]) -> tuple[dict[str, str], tuple[str, ...]]:
    """`ignored` and `notes` of several files that are one adapter."""
    ignored: dict[str, str] = {}
    notes: list[str] = []
    for part in parts:
        ignored |= part.ignored
        notes += part.notes
    return ignored, tuple(dict.fromkeys(notes))


def prefixed(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The same under longer names: of a file among several."""
    return {f"{prefix}{name}": why for name, why in names.items()}


def _tells_scale(name: str) -> bool:
    if name.startswith(_DESCRIPTIVE):
        return False
    return name.replace("_", ".").rpartition(".")[2] in _SCALES or name in _SCALES


def _listed(names: list[str]) -> str:
    shown = [name if len(name) <= 120 else f"{name[:120]}..." for name in names[:_NAMED]]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(shown)}{more} {'is' if len(names) == 1 else 'are'}"

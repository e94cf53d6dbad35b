"""Messages in the reader's language: whole English sentences are raised, and translated where they are printed.

A catalogue has pairs of templates; `{name}` stands for a value, which is kept as it is (but `{reason}`
and `{subject}` are messages themselves, and looked up too). A message without a pair passes in English.
"""

import importlib
import locale
import os
import re
from collections.abc import Mapping
from functools import cache

LANGUAGES = ("en", "ja")
_CATALOGUES = {"ja": "konomi.cli.japanese"}
_INNER = ("reason", "subject")
"""Values of these names are messages themselves, and are translated too."""
_VALUE = re.compile(r"\{(\w*)\}")
_SLIP = " Did you mean "


def language() -> str:
    """`KONOMI_LANGUAGE`, else the locale's, where there is a catalogue for it; else English."""
    names = [os.environ.get(name, "") for name in ("KONOMI_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")]
    name = next((name for name in names if name), "") or locale.getlocale()[0] or ""
    short = "ja" if name.lower().startswith("japanese") else name[:2].lower()
    return short if short in LANGUAGES else "en"


def translated(text: str) -> str:
    """The text in the reader's language, line by line."""
    chosen = language()
    if chosen == "en":
        return text
    return "\n".join(_line(line, chosen) for line in text.split("\n"))


def translated_sum(sentence: str) -> str:
    """`14 images x 10 repeats / batch 2 = 70 steps an epoch`: counts and their words, one by one."""
    chosen = language()
    if chosen == "en" or (whole := translated(sentence)) != sentence:
        return sentence if chosen == "en" else whole
    patterns: tuple[tuple[str, str], ...] = importlib.import_module(_CATALOGUES[chosen]).COUNTS
    for pattern, target in patterns:
        sentence = re.sub(pattern, target, sentence)
    return sentence


def _line(line: str, chosen: str, *, inner: bool = True) -> str:
    for literals, names, target in _catalogue(chosen):
        if (values := _match(line, literals)) is not None:
            found = dict(zip(names, values, strict=True))
            if inner:
                # One level: what a file puts into a message nests no deeper.
                found |= {name: _line(found[name], chosen, inner=False) for name in _INNER if name in found}
            return _filled(target, found)
    head, slip, rest = line.rpartition(_SLIP)
    if slip and rest.endswith("?"):
        # The nearest right name is added to many messages.
        return _line(head, chosen) + _line(f"{slip}{rest}".strip(), chosen)
    return line


def _filled(target: str, values: Mapping[str, str]) -> str:
    # Not str.format: a value may hold braces, and is text of strangers.
    return _VALUE.sub(lambda match: values[match[1]], target)


def _match(text: str, literals: tuple[str, ...]) -> list[str] | None:
    """What stands between the literal pieces; None where they are not there. Linear in the text."""
    first, *rest = literals
    if not text.startswith(first):
        return None
    at, values = len(first), []
    for index, piece in enumerate(rest):
        is_last = index == len(rest) - 1
        found = len(text) - len(piece) if is_last else text.find(piece, at)
        if found < at or not text.startswith(piece, found):
            return None
        values.append(text[at:found])
        at = found + len(piece)
    return values if at == len(text) else None


@cache
def _catalogue(chosen: str) -> tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...]:
    """(literal pieces, names between them, translation), most literal text first: it says most about the message."""
    pairs: Mapping[str, str] = importlib.import_module(_CATALOGUES[chosen]).PAIRS
    entries = [
        (tuple(_VALUE.split(english)[::2]), tuple(_VALUE.findall(english)), target) for english, target in pairs.items()
    ]
    return tuple(sorted(entries, key=lambda entry: -sum(map(len, entry[0]))))

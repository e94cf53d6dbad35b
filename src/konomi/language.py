"""Messages in the reader's language: whole English sentences are raised, and translated where they
are printed.

A catalogue has pairs of templates; `{name}` stands for a value, which is kept as it is. But values
called `reason` or `subject`, with a number perhaps, are messages themselves and looked up too, and
so is what `reasons` has in brackets. What has no pair as a whole is looked up without the name in
front (`file: message`), then sentence by sentence. A message without a pair passes in English.
"""

import importlib
import locale
import os
import re
from collections.abc import Mapping
from functools import cache

LANGUAGES = ("en", "ja")
_CATALOGUES = {"ja": "konomi.cli.japanese"}
_INNER = re.compile(r"(?:reason|subject)\d?")
"""Values of these names are messages themselves, and are translated too."""
_VALUE = re.compile(r"\{(\w*)\}")
_SENTENCE = re.compile(r"(?<=[.?!]) +(?=[A-Z`-])")
_IN_BRACKETS = re.compile(r"(?<= )\(((?:[^()]|\([^()]*\))*)\)")
_NAMES = 6
"""Names in front of a message (`folder: file: message`) that are looked behind."""
_LONGEST = 4000
"""Characters of a line that is taken apart; a longer one is looked up as a whole."""


def language() -> str:
    """`KONOMI_LANGUAGE`, else the locale's, where there is a catalogue for it; else English."""
    names = [
        os.environ.get(name, "") for name in ("KONOMI_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    ]
    name = next((name for name in names if name), "") or locale.getlocale()[0] or ""
    short = "ja" if name.lower().startswith("japanese") else name[:2].lower()
    return short if short in LANGUAGES else "en"


def translated(text: str, chosen: str = "") -> str:
    """The text in the reader's language, or in the one of `LANGUAGES` that is chosen, line by
    line.
    """
    chosen = chosen or language()
    if chosen == "en":
        return text
    return "\n".join(_indented(line, chosen) for line in text.split("\n"))


def translated_sum(sentence: str) -> str:
    """`14 images x 10 repeats / batch 2 = 70 steps an epoch`: counts and their words, one by
    one.
    """
    chosen = language()
    if chosen == "en" or (whole := translated(sentence)) != sentence:
        return sentence if chosen == "en" else whole
    patterns: tuple[tuple[str, str], ...] = importlib.import_module(_CATALOGUES[chosen]).COUNTS
    for pattern, target in patterns:
        sentence = re.sub(pattern, target, sentence)
    return sentence


def _indented(line: str, chosen: str) -> str:
    text = line.lstrip(" ")
    return line[: len(line) - len(text)] + _line(text, chosen)


def _line(line: str, chosen: str) -> str:
    if (whole := _whole(line, chosen)) is not None:
        return whole
    if len(line) > _LONGEST:
        return line
    if (behind := _behind_names(line, chosen)) is not None:
        return behind
    sentences = _SENTENCE.split(line)
    if len(sentences) > 1:
        found = [
            _whole(sentence, chosen) or _behind_names(sentence, chosen) for sentence in sentences
        ]
        if any(found):
            return _joined(sentences, found)
    return line


def _joined(sentences: list[str], found: list[str | None]) -> str:
    """Japanese sentences stand side by side; what stayed in English keeps its space."""
    text = ""
    for english, target in zip(sentences, found, strict=True):
        space = " " if text and (target is None or text[-1].isascii()) else ""
        text += space + (target or english)
    return text


def _behind_names(line: str, chosen: str, depth: int = 2) -> str | None:
    """`file: message` with the message in the reader's language; None where it has no entry."""
    at = -1
    for _ in range(_NAMES):
        at = line.find(": ", at + 1)
        if at < 0:
            return None
        if (rest := _whole(line[at + 2 :], chosen, depth=depth)) is not None:
            return f"{line[:at]}: {rest}"
    return None


def _part(text: str, chosen: str, depth: int) -> str:
    """A message within another: whole, behind a name, or several of them that are joined."""
    if (
        found := _whole(text, chosen, depth=depth) or _behind_names(text, chosen, depth)
    ) is not None:
        return found
    for joiner in ("; ", " and "):
        parts = text.split(joiner)
        targets = [
            _whole(part, chosen, depth=depth) or _behind_names(part, chosen, depth)
            for part in parts
        ]
        if len(parts) > 1 and (all(targets) or (joiner == "; " and any(targets))):
            return "、".join(target or part for target, part in zip(targets, parts, strict=True))
    return text


def _whole(line: str, chosen: str, *, depth: int = 2) -> str | None:
    for literals, names, target in _catalogue(chosen):
        if (values := _match(line, literals)) is not None:
            if (
                names
                and not literals[0]
                and ": " in f"{values[0]} "
                and not _INNER.fullmatch(names[0])
            ):
                # What stands in front of the message is not a part of its first value.
                continue
            found = dict(zip(names, values, strict=True))
            for name, value in found.items():
                if name == "reasons":
                    found[name] = _IN_BRACKETS.sub(
                        lambda match: f"({_part(match[1], chosen, 0)})", value
                    )
                elif depth and _INNER.fullmatch(name):
                    # What is put into a message nests no deeper.
                    found[name] = _part(value, chosen, depth - 1)
                else:
                    found[name] = _value(value, chosen)
            return _filled(target, found)
    return None


def _value(value: str, chosen: str) -> str:
    for pattern, target in importlib.import_module(_CATALOGUES[chosen]).VALUES:
        value = re.sub(pattern, target, value)
    return value


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
    """(literal pieces, names between them, translation), most literal text first: it says most
    about the message.
    """
    pairs: Mapping[str, str] = importlib.import_module(_CATALOGUES[chosen]).PAIRS
    entries = [
        (tuple(_VALUE.split(english)[::2]), tuple(_VALUE.findall(english)), target)
        for english, target in pairs.items()
    ]
    return tuple(sorted(entries, key=lambda entry: -sum(map(len, entry[0]))))

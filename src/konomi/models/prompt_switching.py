"""Prompts that change while a picture is drawn: `[from:to:when]`, `[to:when]`, `[from::when]` and
`[a|b]`.

Plain text in, plain text out; nothing here raises. Read once to a tree, then written out for each
step, both in time proportional to the text and without recursion: a stranger's prompt may hold any
number of brackets at any depth.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor, lcm
from typing import TypeAlias

from konomi.config.weighted_file import NUMBER
from konomi.models.prompt_syntax import STRUCTURE

_Text: TypeAlias = "list[str | _Text | _Switch]"


@dataclass(frozen=True, slots=True)
class _Switch:
    """Square brackets of which one part at a time is drawn."""

    parts: tuple[_Text, ...]
    first: int | None
    """Steps for which the first part is drawn, then the second is; None: they take turns."""

    def at(self, step: int) -> _Text:
        return self.parts[step % len(self.parts) if self.first is None else step >= self.first]


@dataclass(slots=True)
class _Open:
    """A square bracket whose end has not been read, or the prompt itself."""

    text: _Text = field(default_factory=list)
    bars: list[int] = field(default_factory=list)
    """Where `text` has a `|` of this bracket, and `:` likewise: outside other brackets and tags."""
    colons: list[int] = field(default_factory=list)
    depth: int = 0
    """Brackets and tags of other kinds around the place that is being read."""


def prompt_per_step(prompt: str, num_steps: int) -> tuple[str, ...]:
    """The prompt of each sampling step, with `[from:to:when]`, `[to:when]`, `[from::when]` and
    `[a|b]` resolved.

    `when` is a share of the steps where it is written with a point (0.5; 1.0 is all of them) or is
    0, else a number of steps; `from` is drawn for that many steps. `[a|b|c]` takes turns, a new
    one each step.
    """
    if "[" not in prompt:
        return (prompt,) * num_steps
    text, switches = _read(prompt, num_steps)
    changes = sorted({switch.first for switch in switches if switch.first is not None})
    period = lcm(*{len(switch.parts) for switch in switches if switch.first is None})
    # Many steps read the same: the text of each is made once.
    alike = [(bisect_right(changes, step), step % period) for step in range(num_steps)]
    texts = {one: "".join(_at_step(text, step)) for step, one in reversed(list(enumerate(alike)))}
    return tuple(texts[one] for one in alike)


def _read(prompt: str, num_steps: int) -> tuple[_Text, list[_Switch]]:
    """The prompt as a tree, and the switches in it."""
    opened, switches = [_Open()], []
    end = 0
    for match in STRUCTURE.finditer(prompt):
        now, character = opened[-1], match[0]
        if match.start() > end:
            now.text.append(prompt[end : match.start()])
        end = match.end()
        if character == "[":
            opened.append(_Open())
            continue
        if character == "]" and len(opened) > 1:
            opened.pop()
            meaning = _closed(now, num_steps)
            opened[-1].text.append(meaning)
            if isinstance(meaning, _Switch):
                switches.append(meaning)
            continue
        if character in "({<":
            now.depth += 1
        elif character in ")}>]":
            now.depth = max(now.depth - 1, 0)
        elif character == "|" and not now.depth:
            now.bars.append(len(now.text))
        elif character == ":" and not now.depth:
            now.colons.append(len(now.text))
        now.text.append(character)
    opened[-1].text.append(prompt[end:])
    for around, within in zip(opened[-2::-1], opened[:0:-1]):  # Never closed: text.
        around.text += ["[", within.text]
    return opened[0].text, switches


def _closed(bracket: _Open, num_steps: int) -> "_Text | _Switch":
    """What the inside of square brackets means; text where it is no switch."""
    if bracket.bars:
        return _Switch(tuple(_split(bracket.text, bracket.bars)), None)
    parts = list(_split(bracket.text, bracket.colons))
    number = "".join(piece if isinstance(piece, str) else "[" for piece in parts[-1])
    if len(parts) not in (2, 3) or not re.fullmatch(rf"\s*{NUMBER}\s*", number):
        return ["[", bracket.text, "]"]
    when = float(number)
    # A hair of slack: 0.3 * 10 is 3.0000000000000004 the other way round in some products.
    steps = when * num_steps + 1e-6 if ("." in number and when <= 1) or when == 0 else when
    return _Switch((parts[-3] if len(parts) == 3 else [], parts[-2]), floor(min(steps, num_steps)))


def _split(text: _Text, places: list[int]) -> Iterator[_Text]:
    start = 0
    for place in places:
        yield text[start:place]
        start = place + 1
    yield text[start:]


def _at_step(text: _Text, step: int) -> Iterator[str]:
    reading = [iter(text)]
    while reading:
        for piece in reading[-1]:
            if isinstance(piece, str):
                yield piece
            else:
                reading.append(iter(piece.at(step) if isinstance(piece, _Switch) else piece))
                break
        else:
            reading.pop()

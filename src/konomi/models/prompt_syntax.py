"""What people write in a prompt besides words. Plain text in, plain data out; nothing here raises.

Emphasis `(x)` `((x))` `[x]` `{x}` `(x:1.3)`, escapes `\\(`, `BREAK`, mixing `a:0.7 | b:0.3`, and
tags `<lora:name:0.8>`. What does not form one of these is text. Switching, `[a:b:0.5]` and
`[a|b]`, is beside this in `konomi.models.prompt_switching`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from konomi.config.weighted_file import NUMBER

ROUND, SQUARE, CURLY = 1.1, 1 / 1.1, 1.05
"""Factors of (x), [x] (as web UIs read them) and {x} (NovelAI)."""

_FACTORS = {"(": ROUND, "[": SQUARE, "{": CURLY}
_CLOSES = {")": "(", "]": "[", "}": "{"}

_PIECE = re.compile(
    rf"(?P<escaped>\\[()\[\]{{}}\\:|<>])|(?P<weight>:\s*(?P<number>{NUMBER})\s*\))|(?P<open>[(\[{{])|(?P<close>[)\]}}])"
    r"|(?P<break>\s*\bBREAK\b\s*)|(?P<text>\\|:|[^\\()\[\]{}:\sB]+|\s+|B)"
)
STRUCTURE = re.compile(r"\\.|[()\[\]{}<>|:]", re.DOTALL)
_MOST = 1e4
"""Nested factors end here: a thousand brackets are a mistake, and no reason for infinite
numbers."""


@dataclass(frozen=True, slots=True)
class Span:
    """Text of one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Tag:
    """`<kind:name:argument:...>`."""

    kind: str
    name: str
    arguments: tuple[str, ...] = ()


def parse_emphasis(prompt: str) -> tuple[tuple[Span, ...], ...]:
    """Sections divided by BREAK, each a row of spans (none for an empty section). Nested factors
    multiply.

    A bracket that is never closed counts to the end of the prompt; a closing one without partner
    is text.
    """
    pieces: list[tuple[str | None, int]] = []
    opened: list[tuple[str, int]] = []
    # What is in brackets: the brackets around it, and their factor. Brackets that are never closed
    # have their own.
    around, factors = [0], [1.0]
    for match in _PIECE.finditer(prompt):
        piece = match[0]
        scope = opened[-1][1] if opened else 0
        if match["escaped"]:
            pieces.append((piece[1:], scope))
        elif match["open"]:
            opened.append((piece, len(around)))
            around.append(scope)
            factors.append(_FACTORS[piece])
        elif match["break"]:
            pieces.append((None, scope))
        elif (
            match["weight"] and opened and opened[-1][0] == "(" and isfinite(float(match["number"]))
        ):
            factors[opened.pop()[1]] = float(match["number"])
        elif match["close"] and opened and opened[-1][0] == _CLOSES[piece]:
            opened.pop()
        else:
            pieces.append((piece, scope))
    weights = [1.0]
    for scope in range(1, len(around)):
        weights.append(max(-_MOST, min(_MOST, weights[around[scope]] * factors[scope])))
    return _sections([(text, weights[scope]) for text, scope in pieces])


def _sections(pieces: list[tuple[str | None, float]]) -> tuple[tuple[Span, ...], ...]:
    """Split at None (BREAK) and join neighbours of one weight."""
    sections: list[list[tuple[list[str], float]]] = [[]]
    for text, weight in pieces:
        if text is None:
            sections.append([])
        elif sections[-1] and sections[-1][-1][1] == weight:
            sections[-1][-1][0].append(text)
        else:
            sections[-1].append(([text], weight))
    return tuple(
        tuple(Span("".join(texts), weight) for texts, weight in section) for section in sections
    )


def escape(text: str) -> str:
    """Text in which `parse_emphasis`, `prompt_per_step` and `parse_mixture` find no syntax (but
    for the word BREAK).
    """
    return re.sub(r"[()\[\]{}\\:|]", r"\\\g<0>", text)


def parse_mixture(prompt: str) -> tuple[tuple[str, float], ...]:
    """Prompts to blend and their shares: `a:0.7 | b:0.3`. A part without a number counts 1.

    Shares are divided by their sum, so that `a | b` is the middle; they may be negative or above
    1. Where the sum is zero they stay as they are. A prompt without a `|` outside brackets is one
      part, whatever colons it holds.
    """
    parts = _split(prompt, "|")
    if len(parts) == 1:
        return ((prompt, 1.0),)
    mixture = []
    for part in parts:
        match = re.fullmatch(rf"(.*?)(?<!\\):\s*({NUMBER})\s*", part, re.DOTALL)
        weight = float(match[2]) if match else 1.0
        mixture.append(
            (match[1].strip(), weight) if match and isfinite(weight) else (part.strip(), 1.0)
        )
    total = sum(weight for _, weight in mixture)
    if abs(total) < 1e-6 or not isfinite(total):
        return tuple(mixture)
    return tuple((text, weight / total) for text, weight in mixture)


def _split(text: str, separator: str) -> list[str]:
    """At separators outside brackets and tags, not escaped. Joined by the separator they are the
    text again.
    """
    if separator not in text:
        return [text]
    parts, start, depth = [], 0, 0
    for match in STRUCTURE.finditer(text):
        character = match[0]
        if character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth = max(depth - 1, 0)
        elif character == separator and depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


TAG_KINDS = ("lora", "lyco", "hypernet")


def extract_tags(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """The prompt without its `<lora:name:0.8>` tags, and the tags in order. Other `<...>`
    are text.
    """
    tags: list[Tag] = []

    def take(match: re.Match[str]) -> str:
        name, *arguments = match[2].split(":")
        tags.append(
            Tag(match[1].lower(), name.strip(), tuple(argument.strip() for argument in arguments))
        )
        return ""

    pattern = rf"<({'|'.join(TAG_KINDS)}):([^<>\n]+)>"
    cleaned = re.sub(pattern, take, prompt, flags=re.IGNORECASE)
    return (cleaned.strip() if tags else prompt), tuple(tags)


def find_words(text: str, words: Iterable[str]) -> list[tuple[str, str | None]]:
    """The text in pieces, each with the word it is or None. Whole words only, any case, the
    longest first.

    Only Latin letters and digits make a word longer: Japanese is written without spaces; `sks` in
    「sksの写真」 counts.
    """
    by_folded = {word.casefold(): word for word in words if word}
    if not by_folded:
        return [(text, None)]
    alternatives = "|".join(
        (r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9_]", word) else "")
        + re.escape(word)
        + (r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]\Z", word) else "")
        for word in sorted(by_folded.values(), key=len, reverse=True)
    )
    pieces = re.split(f"({alternatives})", text, flags=re.IGNORECASE)
    return [
        (piece, by_folded.get(piece.casefold()) if i % 2 else None)
        for i, piece in enumerate(pieces)
        if piece
    ]

"""Words that mean something already, or offend: never offered as the name of a subject. Works
offline.
"""

import hashlib
from functools import cache
from pathlib import Path

WORDS = Path(__file__).parents[1] / "builtin" / "words"
DIGITS = 16
"""Of the SHA-256 by which an offensive word is known."""
LONG_ENOUGH = 4
"""Letters of an offensive word that is found inside others; shorter ones are parts of too many
good words."""


def is_in_use(word: str) -> bool:
    """Whether people use the word: English words and common names, of three to five letters."""
    return word.lower() in _lines("in_use.txt")


def is_offensive(word: str, *, inside: bool = True) -> bool:
    """Whether the word is on the list of words that offend, or with `inside` holds one that is (as
    "raccoon" does).
    """
    word = word.lower()
    parts = (
        {word}
        if not inside
        else {word[i:j] for i in range(len(word)) for j in range(i + LONG_ENOUGH, len(word) + 1)}
        | {word}
    )
    return any(
        hashlib.sha256(part.encode()).hexdigest()[:DIGITS] in _lines("offensive.txt")
        for part in parts
    )


@cache
def _lines(name: str) -> frozenset[str]:
    return frozenset((WORDS / name).read_text(encoding="ascii").split())

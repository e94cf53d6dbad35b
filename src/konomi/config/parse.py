"""JSON and TOML of unknown origin: read within bounds, and wrong in one way only.

Python's readers answer a hostile text with RecursionError, with gigabytes of empty lists, with
whole numbers that no float holds, or with strings that cannot be written anywhere. Here each of
these is a ValueError that says what it is.
"""

import json
import re
import tomllib
from typing import Any

MAX_VALUES = 4_000_000
"""Values in one text: a bound of less than 1 GiB. The header of the largest published models has
some 20,000."""
MAX_DEPTH = 64
"""Tables and lists inside each other."""
MAX_BITS = 1024
"""Of a whole number: what a float64 can hold at all."""
MAX_DOTS = 200
"""In one piece of a TOML text that may be a key: tomllib's memory grows as the square of a key's
parts."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_json(
    text: str | bytes, *, unique_keys: bool = False, lone_surrogates: bool = False
) -> Any:
    """The value of a JSON text. Bytes are UTF-8, UTF-16 or UTF-32.

    Raises ValueError for what is not JSON, for nesting deeper than `MAX_DEPTH`, more than
    `MAX_VALUES` values, whole numbers longer than `MAX_BITS` and lone surrogates (unless
    `lone_surrogates` leaves them to the caller); with `unique_keys` also for a key that stands
    twice.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    _check_size(text, "[{,")
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise _too_deep() from None
    _check(value, lone_surrogates=lone_surrogates)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises ValueError: tomllib's own where it is no TOML, and as
    `parse_json` does.
    """
    _check_size(text, "[{,=.")
    if any(piece.count(".") > MAX_DOTS for piece in re.split(r"[=\n,{]", text)):
        raise ValueError(f"a key of more than {MAX_DOTS} parts")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def _check_size(text: str, marks: str) -> None:
    # Counted before anything is built: each value but the first follows one of these. Tags within
    # strings do too.
    if _count(text, marks) > MAX_VALUES and _count(_STRING.sub("", text), marks) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")


def _count(text: str, marks: str) -> int:
    return sum(text.count(mark) for mark in marks)


def _check(value: Any, *, lone_surrogates: bool = False) -> None:
    """Without recursion, level by level."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not lone_surrogates:
                    _check_text(item)
            elif isinstance(item, dict):
                if not lone_surrogates:
                    for key in item:
                        _check_text(key)
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, int) and item.bit_length() > MAX_BITS:
                raise ValueError("a whole number of more than 300 digits")
        level = inner
        if not level:
            return
    raise _too_deep()


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("half a character, a lone surrogate")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name} stands twice")
            seen.add(name)
    return table


def _too_deep() -> ValueError:
    return ValueError("nested too deeply")

"""Values of strangers' JSON, as what they should be."""

from collections.abc import Mapping
from typing import Any

from konomi.config.parse import parse_json

_LARGEST = 2**53


def page(content: bytes) -> Any:
    """The JSON of a page. Raises ValueError for what is none, as a page in HTML."""
    return parse_json(content)


def whole(post: Mapping[str, Any], name: str, default: int = 0) -> int:
    """A whole number, which some sites write as a text."""
    value = post.get(name)
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 17:
        value = int(value)
    return value if isinstance(value, int) and abs(value) < _LARGEST else default


def text(post: Mapping[str, Any], name: str) -> str:
    value = post.get(name)
    return value if isinstance(value, str) else ""


def words(post: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A text of tags with spaces between."""
    return tuple(text(post, name).split())


def number_of(post: Any) -> int:
    """The id of a post. Raises ValueError where it has none."""
    number = whole(post, "id") if isinstance(post, dict) else 0
    if number < 1:
        raise ValueError("a post without a number")
    return number

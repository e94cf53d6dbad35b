"""What a setting accepts, read from its type annotation, in words that a person and a form
can use.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

Word = Literal[
    "text",
    "whole number",
    "number",
    "true or false",
    "choice",
    "list",
    "table",
    "section",
    "either",
]

WORDS: dict[Any, Word] = {str: "text", int: "whole number", float: "number", bool: "true or false"}
BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "multiple_of": "a multiple of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What one annotation allows."""

    word: Word
    optional: bool = False
    """None is allowed, which in a recipe is: left out."""
    bounds: tuple[str, ...] = ()
    """`at least 1`, `like 512 or 768x512`."""
    choices: tuple[str | int, ...] = ()
    """Of a choice."""
    parts: tuple["Shape", ...] = ()
    """Of a list: its item, or with a fixed length each item; of a table: its value; of `either`:
    the alternatives."""
    fixed: bool = False
    """A list of exactly `len(parts)` items."""
    section: type | None = None
    """The configuration class of a section."""

    @property
    def text(self) -> str:
        """The type as a phrase that completes "it takes ..."."""
        match self.word:
            case "choice":
                names = ", ".join(str(choice) for choice in self.choices)
                return names if len(self.choices) == 1 else f"one of {names}"
            case "list" if self.fixed:
                return f"a list of {len(self.parts)} values"
            case "list":
                return f"a list of {self.parts[0].plural}"
            case "table":
                return f"a table of {self.parts[0].plural}"
            case "either":
                return " or ".join(part.text for part in self.parts)
            case "text" | "true or false":
                return self.word
            case _:
                return f"a {self.word}"

    @property
    def plural(self) -> str:
        """The type as items of a list."""
        if self.word == "text":
            return "texts"
        if self.word == "choice":
            return f"any of {', '.join(str(choice) for choice in self.choices)}"
        return f"{self.word}s" if self.word in ("whole number", "number", "section") else self.text


@cache
def shape_of(annotation: Any) -> Shape:
    """Read an annotation. Types that no recipe uses are our own mistake: TypeError."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _with_bounds(shape_of(arguments[0]), arguments[1:])
    if annotation in WORDS:
        return Shape(WORDS[annotation])
    if isinstance(annotation, type) and is_dataclass(annotation):
        return Shape("section", section=annotation)
    if origin is Literal:
        return Shape("choice", choices=arguments)
    if origin is tuple:
        repeated = arguments[-1] is Ellipsis
        parts = arguments[:1] if repeated else arguments
        return Shape("list", parts=tuple(shape_of(part) for part in parts), fixed=not repeated)
    if origin in (dict, Mapping):
        return Shape("table", parts=(shape_of(arguments[1]),))
    if origin in (Union, types.UnionType):
        return _union(
            tuple(shape_of(part) for part in arguments if part is not types.NoneType), arguments
        )
    raise TypeError(f"a setting cannot have the type {annotation}")


def number(value: float) -> str:
    """A bound as a person writes it: 1, 0.5, 9223372036854775807."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _union(parts: tuple[Shape, ...], arguments: tuple[Any, ...]) -> Shape:
    optional = types.NoneType in arguments
    if len(parts) > 1:
        return Shape("either", optional=optional, parts=parts)
    only = parts[0]
    return replace(only, optional=optional)


def _with_bounds(shape: Shape, metadata: tuple[Any, ...]) -> Shape:
    bounds = []
    for item in metadata:
        if not isinstance(item, FieldInfo):
            continue
        for constraint in item.metadata:
            for name, phrase in BOUNDS.items():
                if (limit := getattr(constraint, name, None)) is not None:
                    bounds.append(phrase.format(number(limit)))
        if item.examples:
            bounds.append("like " + " or ".join(str(example) for example in item.examples))
    return replace(shape, bounds=shape.bounds + tuple(bounds))

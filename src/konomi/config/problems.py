"""What pydantic found, said in one line each: the dotted name, the value, what is allowed, the
nearest right name.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from konomi.config.schema import Setting, flatten, generic, nearest
from konomi.config.shape import BOUNDS, number
from konomi.errors import RecipeError

LIMITS = {
    "greater_than_equal": "ge",
    "greater_than": "gt",
    "less_than_equal": "le",
    "less_than": "lt",
    "multiple_of": "multiple_of",
}


def check_values(values: Mapping[str, Any], config_type: type) -> None:
    """Values from a command line or from Python against the bounds of a configuration class.

    Raises RecipeError with one line for each value that is not allowed.
    """
    try:
        # As JSON, because strict validation takes tables for dataclasses only there.
        adapter_of(config_type).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(
            *problem_lines(error.errors(include_url=False), "", flatten(config_type))
        ) from error


@cache
def adapter_of(config_type: Any) -> TypeAdapter[Any]:
    """pydantic's reader of a configuration class or of another annotation, made once."""
    return TypeAdapter(config_type)


def problem_lines(
    errors: Iterable[ErrorDetails], prefix: str, settings: tuple[Setting, ...]
) -> list[str]:
    """One line for each place that is wrong; `prefix` is the path of what was validated."""
    known = {setting.path: setting for setting in settings}
    places: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        places.setdefault(_path(error, prefix, known), []).append(error)
    return [_line(path, found, known) for path, found in places.items()]


def unknown(path: str, settings: Iterable[Setting]) -> str:
    """The line for a name that does not exist."""
    meant = nearest(path, settings)
    return f"{path}: no such setting." + (f" Did you mean {meant}?" if meant else "")


def missing(path: str, setting: Setting | None) -> str:
    """The line for a setting without which nothing goes on."""
    return f"{path}: must be set. {setting.help if setting else ''}".rstrip()


def not_a_choice(path: str, value: Any, choices: Iterable[str | int]) -> str:
    """The line for a value that is none of those allowed."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value).lower(), names, 1, 0.5)
    allowed = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    return f"{path} is {show(value)}; it takes {allowed}." + (
        f" Did you mean {close[0]}?" if close else ""
    )


def show(value: Any) -> str:
    """A value as it would stand in a recipe, cut where it is long."""
    if isinstance(value, Mapping):
        return "a section"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _path(error: ErrorDetails, prefix: str, known: Mapping[str, Setting]) -> str:
    """The dotted name. Of a union, pydantic puts the tried type into the place; that is no name,
    and is left out.
    """
    parts = [prefix] if prefix else []
    for depth, part in enumerate(error["loc"]):
        here = known.get(generic(".".join(parts)))
        last = depth == len(error["loc"]) - 1
        is_name = (
            isinstance(part, int)
            or generic(".".join([*parts, part])) in known
            or (last and error["type"] == "unexpected_keyword_argument")
            or (here is not None and here.shape.word == "table")
        )
        if is_name:
            parts.append(str(part))
    return ".".join(parts)


def _line(path: str, found: list[ErrorDetails], known: Mapping[str, Setting]) -> str:
    error, setting = found[0], known.get(generic(path))
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    is_value = f"{path} is {show(value)}"
    if kind == "unexpected_keyword_argument":
        return unknown(path, known.values())
    if kind == "missing" and path.rpartition(".")[2].isdecimal():
        path = path.rpartition(".")[0]
        return f"{path} is {show(value)}; it takes {known[generic(path)].type}."
    if kind == "missing":
        return missing(path, setting)
    if kind == "literal_error" and len(found) == 1:
        expected = setting.choices if setting and setting.choices else _item_choices(path, known)
        return not_a_choice(path, value, expected)
    if kind in LIMITS and len(found) == 1:
        name = LIMITS[kind]
        limit = next(v for k, v in context.items() if k == name)
        return f"{is_value}; {BOUNDS[name].format(number(limit))}."
    if kind == "string_too_short" and context.get("min_length") == 1:
        return f"{is_value}; it must not be empty."
    if kind == "string_pattern_mismatch" and setting and setting.bounds:
        return f"{is_value}; it looks {setting.bounds[-1]}."
    if kind == "value_error":
        return f"{path}: {context['error']}"
    if kind == "finite_number":
        return f"{is_value}; it takes a finite number."
    if kind.endswith("_type") or len(found) > 1 or kind in ("too_long", "too_short"):
        return f"{is_value}; it takes {_type(path, setting, known, error)}."
    return f"{is_value}; {error['msg'][:1].lower()}{error['msg'][1:]}."


def _item_choices(path: str, known: Mapping[str, Setting]) -> tuple[str | int, ...]:
    """The choices of a list's items, for `method.targets.0`."""
    owner = known.get(generic(path.rpartition(".")[0]))
    return owner.shape.parts[0].choices if owner and owner.shape.parts else ()


def _type(
    path: str, setting: Setting | None, known: Mapping[str, Setting], error: ErrorDetails
) -> str:
    if setting is not None:
        return setting.type
    owner = known.get(generic(path.rpartition(".")[0]))
    if owner is not None and owner.shape.parts:
        return owner.shape.parts[0].text
    return error["msg"].removeprefix("Input should be ").removeprefix("a valid ")

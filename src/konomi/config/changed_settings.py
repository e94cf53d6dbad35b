"""The settings of a recipe that are not at their defaults."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from konomi.config.recipe import Recipe


def changed_settings(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """(path, value) of every setting that is not at its default; items of lists of sections by
    their number.
    """
    yield from _changed(recipe, "")


def _changed(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(section):
        value, path = getattr(section, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from _changed(value, f"{path}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for number, part in enumerate(value):
                yield from _changed(part, f"{path}.{number}.")
        elif value != (item.default if item.default_factory is MISSING else item.default_factory()):
            yield path, value


def written(value: object) -> str:
    """As a recipe has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The recipe as a flat list of settings: the one list behind overrides, commented recipes, forms
and documentation.
"""

import ast
import difflib
import inspect
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from konomi.config.recipe import MethodConfig, Recipe
from konomi.config.shape import Shape, shape_of

INDEX = "N"
"""Stands in a setting's path for the number of a list item: `data.sources.N.path`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a recipe."""

    path: str
    """Dotted name, `method.rank`."""
    type: str
    """`a whole number`, `one of train, prior`."""
    default: Any
    """None where it is left out by default, and where `required`."""
    required: bool
    bounds: tuple[str, ...]
    choices: tuple[str | int, ...]
    help: str
    shape: Shape

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        """The path without the name; empty at the top."""
        return self.path.rpartition(".")[0]


@cache
def flatten(
    config_type: type, *, prefix: str = "", method: type | None = None
) -> tuple[Setting, ...]:
    """All settings below a configuration class, in the order of declaration.

    `method` is the class that stands for `Recipe.method`; without it that section is left out.
    Sections are settings of their own (shape.word "section") followed by what they hold; the items
    of a list of sections follow under `NAME.N`.
    """
    return tuple(_walk(config_type, prefix, method))


def recipe_settings(method: type | None = None) -> tuple[Setting, ...]:
    """All settings of a recipe for one method."""
    return flatten(Recipe, method=method)


def nearest(path: str, settings: Iterable[Setting]) -> str | None:
    """The setting's path that was probably meant, with the numbers of list items as they were
    written.
    """
    paths = [setting.path for setting in settings]
    wanted = generic(path)
    name = _last(wanted)
    same_name = [p for p in paths if _last(p) == name]
    # A long common section must not make strangers look alike, so names are compared by themselves
    # too.
    like_name = [p for p in paths if difflib.SequenceMatcher(None, name, _last(p)).ratio() >= 0.6]
    close = difflib.get_close_matches(wanted, same_name, 1, 0.4) or difflib.get_close_matches(
        wanted, like_name, 1, 0.6
    )
    if not close and len(same_name) == 1:
        close = same_name
    if not close and "." not in wanted:
        by_name = {_last(p): p for p in reversed(paths)}
        close = [by_name[found] for found in difflib.get_close_matches(wanted, by_name, 1, 0.75)]
    if not close:
        return None
    numbers = [part for part in path.split(".") if part.isdecimal()]
    return ".".join(
        numbers.pop(0) if part == INDEX and numbers else part for part in close[0].split(".")
    )


def generic(path: str) -> str:
    """`data.sources.0.path` -> `data.sources.N.path`."""
    return ".".join(INDEX if part.isdecimal() else part for part in path.split("."))


def docs_table(settings: Iterable[Setting]) -> str:
    """Settings as a Markdown table: name, what it accepts, default, what it does."""
    rows = ["| Setting | Accepts | Default | What it does |", "| --- | --- | --- | --- |"]
    for setting in settings:
        if setting.shape.word == "section":
            continue
        accepts = ", ".join((setting.type, *setting.bounds))
        default = (
            "(must be set)"
            if setting.required
            else ""
            if setting.default is None
            else f"`{_short(setting)}`"
        )
        cells = (f"`{setting.path}`", accepts, default, setting.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def help_of(config_type: type) -> dict[str, str]:
    """The text under each field of a configuration class, its own or inherited, joined to
    one line.
    """
    texts: dict[str, str] = {}
    body = [
        statement for kind in reversed(config_type.__mro__[:-1]) for statement in _class_body(kind)
    ]
    for statement, following in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    # A method's own text is what there is to say about its kind.
    if any(item.name == "kind" for item in fields(config_type)):
        texts.setdefault("kind", summary(config_type))
    return texts


def summary(config_type: type) -> str:
    """The class's own text, on one line."""
    return " ".join((config_type.__doc__ or "").split())


def _walk(config_type: type, prefix: str, method: type | None) -> Iterator[Setting]:
    hints = get_type_hints(config_type, include_extras=True)
    texts = help_of(config_type)
    # What a section adds to another comes before what it shares with it.
    for item in sorted(
        fields(config_type), key=lambda item: item.name not in config_type.__annotations__
    ):
        annotation = hints[item.name]
        if annotation is MethodConfig:
            if method is None:
                continue
            annotation = method
        path = f"{prefix}{item.name}"
        shape = shape_of(annotation)
        required = (
            item.default is MISSING and item.default_factory is MISSING and shape.word != "section"
        )
        yield Setting(
            path=path,
            type=shape.text,
            default=_default(item),
            required=required,
            bounds=shape.bounds,
            choices=shape.choices,
            help=texts.get(item.name, ""),
            shape=shape,
        )
        if shape.section is not None:
            yield from _walk(shape.section, f"{path}.", method)
        elif shape.word == "list" and shape.parts[0].section is not None:
            yield from _walk(shape.parts[0].section, f"{path}.{INDEX}.", method)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return None if item.default is MISSING else item.default


def _short(setting: Setting) -> str:
    value = setting.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    # dataclass(slots=True) makes a second class, but the source is found by module and name all
    # the same.
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _class_body(config_type: type) -> list[ast.stmt]:
    return _classes(config_type.__module__)[config_type.__name__].body

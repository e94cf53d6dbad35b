"""Recipes from files, flags and forms: read, checked, complete; and back to text."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ValidationError

from konomi.config.card import is_picture, read_card
from konomi.config.overrides import apply_overrides, require_method
from konomi.config.parse import parse_toml
from konomi.config.paths import with_paths_from
from konomi.config.problems import adapter_of, missing, problem_lines, unknown
from konomi.config.recipe import Recipe
from konomi.config.schema import recipe_settings
from konomi.config.sections import ObjectiveConfig
from konomi.config.write import commented_recipe, recipe_data, write_recipe
from konomi.errors import RecipeError

__all__ = [
    "apply_overrides",
    "change_recipe",
    "check_recipe",
    "commented_recipe",
    "parse_recipe",
    "read_recipe",
    "recipe_data",
    "with_absolute_paths",
    "write_recipe",
]


def parse_recipe(data: Mapping[str, Any], method_configs: Sequence[type]) -> Recipe:
    """A recipe from plain data, as TOML or JSON give it.

    `method_configs` are the configuration classes of the known methods; `method.kind` chooses
    among them.

    Raises RecipeError with one complete line for each problem.
    """
    lines: list[str] = []
    method_data = data.get("method")
    method = None
    try:
        method = require_method(
            method_data.get("kind") if isinstance(method_data, Mapping) else None, method_configs
        )
    except RecipeError as error:
        lines.append(str(error))
    settings = recipe_settings(method)
    types: dict[str, Any] = get_type_hints(Recipe, include_extras=True) | {"method": method}
    lines += [unknown(name, settings) for name in data if name not in types]
    values: dict[str, Any] = {}
    for name, section_type in types.items():
        if name not in data or section_type is None:
            continue
        try:
            # As JSON, because strict validation takes tables for dataclasses and lists for tuples
            # only there.
            values[name] = adapter_of(section_type).validate_json(
                json.dumps(data[name], default=str), strict=True
            )
        except ValidationError as error:
            lines += problem_lines(error.errors(include_url=False), name, settings)
    if not data.get("base"):
        lines.insert(
            0, missing("base", next(setting for setting in settings if setting.path == "base"))
        )
    if lines:
        raise RecipeError(*lines)
    recipe = Recipe(**values)
    if contradictions := _contradictions(recipe):
        raise RecipeError(*contradictions)
    return recipe


def read_recipe(
    path: str | Path, overrides: Sequence[str] = (), method_configs: Sequence[type] = ()
) -> Recipe:
    """A recipe from a TOML file or a recipe card, with settings changed by `name=value`. Raises
    RecipeError.

    Relative paths in the file start at its folder, those in `overrides` at the current one.
    """
    data = with_paths_from(read_plain(Path(path)), Path(path).parent)
    return parse_recipe(apply_overrides(data, overrides, method_configs), method_configs)


def read_plain(path: Path) -> dict[str, Any]:
    """The plain data of a recipe, of a TOML file or of a recipe card. Raises RecipeError."""
    return read_card(path) if is_picture(path) else read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:
    """The plain data of a TOML file. Raises RecipeError that says where the file is wrong."""
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such file. `konomi new lora -o {path}` writes a recipe to start from."
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    except ValueError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}.") from error


def check_recipe(recipe: Recipe) -> Recipe:
    """A recipe built in Python, checked as if it had been read from a file. Raises RecipeError."""
    return parse_recipe(recipe_data(recipe), (type(recipe.method),))


def timestep_contradiction(objective: ObjectiveConfig) -> str:
    """Why no timestep lies between the objective's bounds; "" where some do."""
    if objective.min_timestep <= objective.max_timestep:
        return ""
    return (
        f"objective.min_timestep is {objective.min_timestep}; at most objective.max_timestep,"
        f" which is {objective.max_timestep}."
    )


def _contradictions(recipe: Recipe) -> list[str]:
    objective, buckets = recipe.objective, recipe.data.buckets
    lines = []
    if line := timestep_contradiction(objective):
        lines.append(line)
    if buckets.max_side and buckets.min_side > buckets.max_side:
        lines.append(
            f"data.buckets.min_side is {buckets.min_side}; at most data.buckets.max_side, which is "
            f"{buckets.max_side}."
        )
    return lines


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe as it means the same from any folder; the run folder's own name stays. Raises
    RecipeError.
    """
    data = with_paths_from(recipe_data(recipe), Path.cwd(), output=False)
    return parse_recipe(data, (type(recipe.method),))


def change_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with settings changed by `name=value`. Raises RecipeError."""
    configs = (type(recipe.method),)
    return parse_recipe(apply_overrides(recipe_data(recipe), overrides, configs), configs)

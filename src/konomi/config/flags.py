"""The short way to a recipe: a method, a folder of images and a base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from konomi.config.load import parse_recipe
from konomi.config.overrides import apply_overrides, kind_of, named_method
from konomi.config.recipe import Recipe
from konomi.errors import RecipeError


def recipe_from_flags(
    method: str,
    *,
    images: Sequence[Path],
    base: str,
    method_configs: Sequence[type],
    trigger: str = "",
    class_noun: str = "",
    output: str = "",
    steps: int | None = None,
    seed: int | None = None,
    prior_images: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe that the flags of `konomi train METHOD` stand for.

    Each folder of `images` is a source with the same trigger and class; `prior_images` is one
    more, of the class alone. `overrides` are applied last, so `data.sources.0.repeats=10` speaks
    of the first folder.

    Raises RecipeError as `parse_recipe` does, and if there is no folder.
    """
    config, settings = named_method(method, method_configs)
    if not images:
        raise RecipeError("data.sources: no images. Name their folder with --images DIR.")
    named = {"trigger": trigger, "class_noun": class_noun}
    sources: list[dict[str, Any]] = [{"path": str(folder), **_given(named)} for folder in images]
    if prior_images is not None:
        sources.append(
            {"path": str(prior_images), "role": "prior", **_given({"class_noun": class_noun})}
        )
    data = {
        "base": base,
        "method": {"kind": kind_of(config), **settings},
        "data": {"sources": sources},
        "run": _given({"output": output, "steps": steps, "seed": seed}),
    }
    return parse_recipe(apply_overrides(data, overrides, method_configs), method_configs)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what was not said: its default stays the recipe's business."""
    return {name: value for name, value in values.items() if value is not None and value != ""}

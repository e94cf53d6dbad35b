"""Recipes of the methods that konomi has: from a file, from a few words, or written out with comments."""

from collections.abc import Sequence
from pathlib import Path

from konomi.config import flags
from konomi.config.load import commented_recipe
from konomi.config.load import read_recipe as read
from konomi.config.overrides import require_method
from konomi.config.recipe import Recipe
from konomi.methods import METHODS

METHOD_CONFIGS = tuple(method.config_type for method in METHODS)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a TOML file, with settings changed by `method.rank=8`. Raises RecipeError."""
    return read(path, overrides, METHOD_CONFIGS)


def new_recipe(method: str) -> str:
    """A commented recipe for a method: every setting with its default, bounds and meaning. Raises RecipeError."""
    return commented_recipe(require_method(method, METHOD_CONFIGS))


def recipe_from_flags(
    method: str,
    *,
    images: Sequence[str | Path],
    base: str,
    trigger: str = "",
    class_noun: str = "",
    output: str = "",
    steps: int | None = None,
    seed: int | None = None,
    prior_images: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe that `konomi train METHOD --images DIR --base BASE ...` stands for. Raises RecipeError."""
    return flags.recipe_from_flags(
        method,
        images=[Path(folder) for folder in images],
        base=base,
        method_configs=METHOD_CONFIGS,
        trigger=trigger,
        class_noun=class_noun,
        output=output,
        steps=steps,
        seed=seed,
        prior_images=None if prior_images is None else Path(prior_images),
        overrides=overrides,
    )

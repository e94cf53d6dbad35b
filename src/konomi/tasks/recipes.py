"""Recipes of the methods that konomi has: from a file, from a few words, or written out with
comments.
"""

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
    """A recipe from a file.

    path: the TOML file.
    overrides: settings to change, each like `method.rank=8`.

    Raises RecipeError.
    """
    return read(path, overrides, METHOD_CONFIGS)


def new_recipe(method: str) -> str:
    """A commented recipe, as TOML: every setting with its default, bounds and meaning.

    method: its name, `lora`.

    Raises RecipeError.
    """
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
    """The recipe that `konomi train METHOD --images DIR --base BASE ...` stands for.

    method: its name, `lora`.
    images: folders (or archives) of images to train on.
    base: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    trigger: the word that will mean the subject.
    class_noun: what the subject is in plain words, `dog`.
    output: the run folder; by default runs/NAME.
    steps: total number of optimiser steps; by default the method's own for so many images.
    seed: of everything that is drawn by chance.
    prior_images: a folder of class images, in place of those the base would draw.
    overrides: further settings, each like `method.rank=8`.

    Raises RecipeError.
    """
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

"""Recipes of the methods that konomi has: from a file, from a few words, or written out with
comments.
"""

from collections.abc import Sequence
from pathlib import Path

from konomi.config import card_flags, flags
from konomi.config.card import read_card
from konomi.config.load import commented_recipe, parse_recipe, write_recipe
from konomi.config.load import read_recipe as read
from konomi.config.overrides import named_method
from konomi.config.recipe import Recipe
from konomi.methods import METHODS

METHOD_CONFIGS = tuple(method.config_type for method in METHODS)
CARD_HEADER = """\
# The recipe of a recipe card. Of its paths only the last names are known: put in your own.
# Check it with `konomi check FILE`, run it with `konomi train FILE`.
"""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a file.

    path: a TOML file, or a recipe card (`NAME.card.png`).
    overrides: settings to change, each like `method.rank=8`.

    Raises RecipeError.
    """
    return read(path, overrides, METHOD_CONFIGS)


def recipe_from_card(
    card: str | Path,
    *,
    images: Sequence[str | Path] = (),
    base: str = "",
    trigger: str = "",
    class_noun: str = "",
    prior_images: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe in a card, for other images or another base.

    card: the picture that a run ended with, `NAME.card.png`.
    images: folders in place of those that the card names.
    base: `tiny`, a folder, a file or a hub id; by default the card's, if it is here.
    trigger: the word that will mean the subject; by default the card's.
    class_noun: what the subject is in plain words; by default the card's.
    prior_images: a folder of class images in place of the card's.
    overrides: further settings, each like `method.rank=8`.

    Raises RecipeError for a picture without a recipe, one that is damaged, and where images or
    base are not on this machine.
    """
    return card_flags.recipe_from_card(
        Path(card),
        METHOD_CONFIGS,
        images=[Path(folder) for folder in images],
        trigger=trigger,
        class_noun=class_noun,
        prior_images=None if prior_images is None else Path(prior_images),
        overrides=[*([f"base={base}"] if base else []), *overrides],
    )


def recipe_of_card(card: str | Path) -> str:
    """The recipe in a card, as TOML to work on: complete, with the last names of its paths.

    card: the picture that a run ended with, `NAME.card.png`.

    Raises RecipeError for a picture without a recipe, and one that is damaged.
    """
    recipe = parse_recipe(read_card(Path(card)), METHOD_CONFIGS)
    return CARD_HEADER + write_recipe(recipe)


def new_recipe(method: str) -> str:
    """A commented recipe, as TOML: every setting with its default, bounds and meaning.

    method: its name, `lora`, or that of an algorithm of lora, `lokr`.

    Raises RecipeError.
    """
    config, settings = named_method(method, METHOD_CONFIGS)
    return commented_recipe(config, settings=settings)


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

    method: its name, `lora`, or that of an algorithm of lora, `lokr`.
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

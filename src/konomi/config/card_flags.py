"""A recipe card and what the command line says otherwise: other images, another base."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.config.card import is_path, read_card
from konomi.config.load import parse_recipe
from konomi.config.overrides import apply_overrides
from konomi.config.paths import with_paths_from
from konomi.config.recipe import Recipe
from konomi.errors import RecipeError


def recipe_from_card(
    card: Path,
    method_configs: Sequence[type],
    *,
    images: Sequence[Path] = (),
    trigger: str = "",
    class_noun: str = "",
    prior_images: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a card with other images in it.

    Each folder of `images` takes the place of one that the card names, with its trigger, class
    and repeats; `prior_images` that of the class images. Paths in the card start at its folder.
    Raises RecipeError as `parse_recipe` does, and where images or base are not on this machine.
    """
    data = with_paths_from(read_card(card), card.parent)
    sources = _sources(data)
    train = [source for source in sources if source.get("role") != "prior"]
    prior = [source for source in sources if source.get("role") == "prior"]
    if images:
        models = train or [{}]
        train = [
            models[min(number, len(models) - 1)] | {"path": str(folder)}
            for number, folder in enumerate(images)
        ]
    named = {"trigger": trigger, "class_noun": class_noun}
    train = [source | {k: v for k, v in named.items() if v} for source in train]
    if prior_images is not None:
        nouns = {"class_noun": class_noun} if class_noun else {}
        model = (prior or [{"role": "prior"}])[0]
        prior = [model | nouns | {"path": str(prior_images)}]
    section = data.get("data")
    others = dict(section) if isinstance(section, Mapping) else {}
    data["data"] = others | {"sources": [*train, *prior]}
    recipe = parse_recipe(apply_overrides(data, overrides, method_configs), method_configs)
    if lines := _not_here(recipe, card):
        raise RecipeError(*lines)
    return recipe


def _sources(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that are tables: others are for `parse_recipe` to name."""
    section = data.get("data")
    sources = section.get("sources") if isinstance(section, Mapping) else None
    if not isinstance(sources, list):
        return []
    return [dict(source) for source in sources if isinstance(source, Mapping)]


def _not_here(recipe: Recipe, card: Path) -> list[str]:
    lines = []
    base = recipe.base
    if (
        base != "tiny"
        and not Path(base).expanduser().exists()
        and ("/" not in base or is_path(base))
    ):
        lines.append(
            f"{card}: was trained on the base {base!r}, which is not here. Name yours with --base."
        )
    if gone := _gone(recipe, "train"):
        lines.append(
            f"{card}: names images in {gone}, which are not here. Name yours with --images DIR."
        )
    if gone := _gone(recipe, "prior"):
        lines.append(
            f"{card}: names class images in {gone}, which are not here. Name yours with --prior "
            "DIR."
        )
    return lines


def _gone(recipe: Recipe, role: str) -> str:
    return ", ".join(
        source.path
        for source in recipe.data.sources
        if source.role == role and not Path(source.path).expanduser().exists()
    )

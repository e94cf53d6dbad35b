"""The format in which a run's result is written: it fits what the method makes, and the base."""

from dataclasses import replace

from konomi.config.recipe import Recipe
from konomi.errors import RecipeError
from konomi.formats import WRITERS
from konomi.methods.method import Needs
from konomi.models.base import BaseModel


def with_result_format(recipe: Recipe, needs: Needs, base: BaseModel) -> Recipe:
    """The recipe, with a result format where the base has only one. Raises RecipeError for one
    that does not fit what the method makes, or the base.
    """
    chosen, makes = recipe.save.format, needs.makes
    if makes == "model" and not base.has_single_file:
        if chosen == "checkpoint":
            raise RecipeError(
                f"save.format is 'checkpoint', but {base.spec.title} has no form in one file. Use "
                "'diffusers'."
            )
        return replace(recipe, save=replace(recipe.save, format="diffusers"))
    if chosen == "auto":
        return recipe
    if makes == "model":
        known = ["checkpoint", "diffusers"]
    else:
        known = list(
            dict.fromkeys(
                to for writer in WRITERS if writer.content == makes for to in writer.targets
            )
        )
    if chosen not in known:
        words = {"model": "a whole model", "lora": "an adapter", "embedding": "an embedding"}
        choices = " or ".join(map(repr, known))
        raise RecipeError(
            f"save.format is {chosen!r}, but the method makes "
            f"{words.get(makes, f'a {makes} result')}. Use {choices}."
        )
    return recipe

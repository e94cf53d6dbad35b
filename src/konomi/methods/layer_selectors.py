"""Layer selectors (`attention`, `conv`, `text`) that select nothing in a base."""

from collections.abc import Iterable, Mapping

from torch import nn

from konomi.errors import RecipeError
from konomi.models.base import BaseModel


def selected_layers(base: BaseModel, selector: str) -> Mapping[str, nn.Module]:
    """Canonical key -> layer. Raises RecipeError where the base has none: a selector of nothing
    would be ignored; ModelError where no base of its family has any.
    """
    found = base.select_layers(selector)
    if not found:
        raise RecipeError(
            f"{base.name} has no layers that {selector!r} selects: leave it out of the recipe."
        )
    return found


def check_base_has_layers(base: BaseModel, selectors: Iterable[str], usual: Iterable[str]) -> None:
    """The same without loading a weight, before images are encoded for a day. Every base has the
    `usual` ones.
    """
    unusual = [selector for selector in selectors if selector not in usual]
    if unusual:
        meta_copy = base.meta_copy()
        for selector in unusual:
            selected_layers(meta_copy, selector)

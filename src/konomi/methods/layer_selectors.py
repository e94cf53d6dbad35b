"""Layer selectors (`attention`, `conv`, `text`) that select nothing in a base."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from konomi.errors import RecipeError
from konomi.families.layer_choice import Layer, is_plain, read_choices
from konomi.families.selectors import selects
from konomi.methods.chosen_layers import layers_of
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


def chosen_modules(base: BaseModel, targets: Sequence[str], setting: str) -> dict[str, nn.Module]:
    """Canonical key -> layer, for a list of groups, blocks and patterns. Raises RecipeError,
    ModelError for what means none.
    """
    if is_plain(targets, base.spec):
        return {key: one for word in targets for key, one in selected_layers(base, word).items()}
    layers = [layer for layer in layers_of(base) if layer.adapted]

    def usual(layer: Layer) -> bool:
        return any(selects(base.spec, word, layer.key) for word in ("transformer", "text"))

    def default(layer: Layer) -> bool:
        return selects(base.spec, "transformer", layer.key)

    choices = read_choices(targets, base.spec, layers, setting=setting, base=base.name)
    found = choices.chosen(base.spec, layers, usual=usual, default=default)
    return {layer.key: base.module(layer.key) for layer in found}


def check_base_has_layers(base: BaseModel, selectors: Iterable[str], usual: Iterable[str]) -> None:
    """The same without loading a weight, before images are encoded for a day. Every base has the
    `usual` ones.
    """
    unusual = [selector for selector in selectors if selector not in usual]
    if unusual:
        meta_copy = base.meta_copy()
        for selector in unusual:
            selected_layers(meta_copy, selector)

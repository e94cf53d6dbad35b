"""Words for groups of layers (`attention`, `conv`, `text`) that a base has none of."""

from collections.abc import Iterable, Mapping

from torch import nn

from konomi.errors import RecipeError
from konomi.models.base import BaseModel


def layers_called(base: BaseModel, word: str) -> Mapping[str, nn.Module]:
    """Canonical key -> layer. Raises RecipeError where the base has none: a word that names
    nothing would be ignored, ModelError where no base of its family has.
    """
    found = base.targets(word)
    if not found:
        raise RecipeError(
            f"{base.name} has no layers called {word!r}: leave the word out of the recipe."
        )
    return found


def check_words(base: BaseModel, words: Iterable[str], usual: Iterable[str]) -> None:
    """The same without loading a weight, before images are encoded for a day. Every base has the
    `usual` ones.
    """
    unusual = [word for word in words if word not in usual]
    if unusual:
        meta_copy = base.meta_copy()
        for word in unusual:
            layers_called(meta_copy, word)

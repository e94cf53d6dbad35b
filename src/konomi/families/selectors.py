"""Layer selectors: neutral names for groups of layers (`attention`, `conv`, `text`), in the words
of a family.
"""

from __future__ import annotations

from collections.abc import Iterable

from konomi.errors import ModelError
from konomi.families.family import DENOISER, Family


def known_selectors(family: Family) -> tuple[str, ...]:
    """Those of the denoiser, then those of the text encoders."""
    return tuple(dict.fromkeys(name for spec in family.adapted_parts for name in spec.selectors))


def check_selectors(family: Family, names: Iterable[str]) -> None:
    """Raises ModelError for one that names no kind of layer of the family: known before any weight
    is loaded.
    """
    known = known_selectors(family)
    for name in names:
        if name not in known:
            raise ModelError(f"there are no layers called {name!r}. Known: {', '.join(known)}.")


def selects(family: Family, name: str, key: str) -> bool:
    """Whether a layer, by its canonical key, is among those that a selector names."""
    part, _, path = key.partition(".")
    specs = [spec for spec in family.adapted_parts if spec.part == part and name in spec.selectors]
    return any(spec.selectors[name].fullmatch(path) for spec in specs)


def depth_of(family: Family, key: str) -> int:
    """Place of a denoiser's block among its blocks in the order in which they compute, by a
    layer's canonical key.
    """
    part, _, path = key.partition(".")
    order = family.denoiser.block_order
    first = path.partition(".")[0]
    return order.index(first) if part == DENOISER and first in order else len(order)

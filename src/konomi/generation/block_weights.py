"""Weights of a LoRA by block of the denoiser, `<lora:x:1:lbw=1,0,0,...>`, as the block weight
extension of web UIs writes them. Blocks have the names of the original implementation (`IN04`,
`M00`, `OUT07`); BASE is the text encoder.
"""

import re
from collections.abc import Callable, Iterable
from math import isfinite

from konomi.errors import RecipeError
from konomi.families import FAMILIES
from konomi.families.family import DENOISER
from konomi.models.prompt_syntax import NUMBER

_LISTS = {len(blocks): blocks for family in FAMILIES for blocks in family.denoiser.block_lists}
"""Length -> blocks that the numbers are for."""
_BASE = "BASE"
_PRESETS = {"ALL": 1.0, "NONE": 0.0}


def parse_block_weights(written: str, tag: str) -> dict[str, float]:
    """Block -> weight. Raises RecipeError, with the tag's words, for a list of another length or
    of something else.
    """
    values = [value.strip() for value in written.split(",")]
    if values[0].upper() in _PRESETS and len(values) == 1:
        return dict.fromkeys(_LISTS[max(_LISTS)], _PRESETS[values[0].upper()])
    if wrong := next((value for value in values if not re.fullmatch(NUMBER, value)), None):
        raise RecipeError(
            f"{tag}: lbw={wrong[:40]!r} is not a number; of presets only ALL and NONE are known."
        )
    if not all(isfinite(float(value)) for value in values):
        raise RecipeError(f"{tag}: lbw holds too large a number.")
    if len(values) not in _LISTS:
        known = ", ".join(map(str, sorted(_LISTS)))
        raise RecipeError(f"{tag}: lbw has {len(values)} numbers; lists of {known} have a meaning.")
    return dict(zip(_LISTS[len(values)], map(float, values)))


def layer_weights(
    blocks: dict[str, float], keys: Iterable[str], block_of: Callable[[str], str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Canonical key -> weight, and the keys that lie in blocks without one: those keep 1.

    block_of: the block of a denoiser's layer, `BaseModel.block_of`.
    """
    weights, without = {}, []
    for key in keys:
        block = block_of(key) if key.startswith(f"{DENOISER}.") else _BASE
        if block in blocks:
            weights[key] = blocks[block]
        else:
            without.append(key)
    return weights, tuple(without)

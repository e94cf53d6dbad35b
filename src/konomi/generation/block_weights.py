"""Weights of a LoRA by block of the denoiser, `<lora:x:1:lbw=1,0,0,...>`, as the block weight
extension of web UIs writes them. Blocks have the names of the original implementation (`IN04`,
`M00`, `OUT07`); BASE is the text encoder.
"""

import re
from collections.abc import Callable, Iterable
from math import isfinite

from konomi.config.weighted_file import NUMBER
from konomi.errors import RecipeError
from konomi.families import FAMILIES
from konomi.families.blocks import BASE, expand, known_blocks
from konomi.families.family import DENOISER, Family

_LISTS = {len(blocks): blocks for family in FAMILIES for blocks in family.denoiser.block_lists}
"""Length -> blocks that the numbers are for."""
_SWITCHES = {
    "INS": "11100000000000000",
    "IND": "10001110000000000",
    "INALL": "11111110000000000",
    "MIDD": "10001111111100000",
    "OUTD": "10000000111100000",
    "OUTS": "10000000000011111",
    "OUTALL": "10000000111111111",
}
"""The extension's presets, of its list of 17 blocks."""
_PRESETS: dict[str, dict[str, float]] = {
    "ALL": dict.fromkeys(_LISTS[max(_LISTS)], 1.0),
    "NONE": dict.fromkeys(_LISTS[max(_LISTS)], 0.0),
    **{
        name: dict(zip(_LISTS[len(switches)], map(float, switches)))
        for name, switches in _SWITCHES.items()
    },
}


def parse_block_weights(written: str, tag: str) -> dict[str, float]:
    """Block -> weight. Raises RecipeError, with the tag's words, for a list of another length or
    of something else.
    """
    values = [value.strip() for value in written.split(",")]
    if values[0].upper() in _PRESETS and len(values) == 1:
        return dict(_PRESETS[values[0].upper()])
    if wrong := next((value for value in values if not re.fullmatch(NUMBER, value)), None):
        raise RecipeError(
            f"{tag}: lbw={wrong[:40]!r} is not a number; presets are {', '.join(_PRESETS)}."
        )
    if not all(isfinite(float(value)) for value in values):
        raise RecipeError(f"{tag}: lbw holds too large a number.")
    if len(values) not in _LISTS:
        known = ", ".join(map(str, sorted(_LISTS)))
        raise RecipeError(f"{tag}: lbw has {len(values)} numbers; lists of {known} have a meaning.")
    return dict(zip(_LISTS[len(values)], map(float, values)))


def parse_blocks_of(written: str, family: Family) -> dict[str, float]:
    """Block -> weight, of `--blocks`: a list or preset as in a prompt, or names of the family's
    blocks with a weight each, `IN00-IN08:0,OUT*:0.5,BASE:1`; the last that names a block counts.

    Raises RecipeError.
    """
    entries = [entry.strip() for entry in written.split(",") if entry.strip()]
    if not any(":" in entry for entry in entries):
        return parse_block_weights(written, "--blocks")
    known = known_blocks(family)
    found: dict[str, float] = {}
    for entry in entries:
        name, _, weight = entry.rpartition(":")
        if not re.fullmatch(NUMBER, weight.strip()) or not isfinite(float(weight)):
            raise RecipeError(f"--blocks: {entry[:40]!r}: write BLOCK:WEIGHT, such as OUT03:0.5.")
        base = name.strip().upper() == BASE
        blocks = (BASE,) if base else expand(name, known[1:])
        if not blocks:
            raise RecipeError(
                f"--blocks: there is no block {name.strip()[:20]!r}; this family has "
                f"{', '.join(known)}."
            )
        found |= dict.fromkeys(blocks, float(weight))
    return found


def layer_weights(
    blocks: dict[str, float], keys: Iterable[str], block_of: Callable[[str], str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Canonical key -> weight, and the keys that lie in blocks without one: those keep 1.

    block_of: the block of a denoiser's layer, `BaseModel.block_of`.
    """
    weights, without = {}, []
    for key in keys:
        block = block_of(key) if key.startswith(f"{DENOISER}.") else BASE
        if block in blocks:
            weights[key] = blocks[block]
        else:
            without.append(key)
    return weights, tuple(without)

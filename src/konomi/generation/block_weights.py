"""Weights of a LoRA by block of the denoiser, `<lora:x:1:lbw=1,0,0,...>`, as the block weight extension of web UIs
writes them. Blocks have the names of the original implementation: IN00 to IN11, M00, OUT00 to OUT11; BASE is the text
encoder.
"""

import re
from collections.abc import Iterable
from math import isfinite

from konomi.errors import RecipeError
from konomi.models.prompt_syntax import NUMBER


def _numbered(*numbers: int, name: str) -> tuple[str, ...]:
    return tuple(f"{name}{number:02d}" for number in numbers)


_LISTS = {
    17: ("BASE", *_numbered(1, 2, 4, 5, 7, 8, name="IN"), "M00", *_numbered(*range(3, 12), name="OUT")),
    12: ("BASE", *_numbered(4, 5, 7, 8, name="IN"), "M00", *_numbered(*range(6), name="OUT")),
    26: ("BASE", *_numbered(*range(12), name="IN"), "M00", *_numbered(*range(12), name="OUT")),
    20: ("BASE", *_numbered(*range(9), name="IN"), "M00", *_numbered(*range(9), name="OUT")),
}
"""Length -> blocks: attention of SD1 and SD2, of SDXL, then the same with convolutions."""
_PRESETS = {"ALL": 1.0, "NONE": 0.0}


def parse_block_weights(written: str, tag: str) -> dict[str, float]:
    """Block -> weight. Raises RecipeError, with the tag's words, for a list of another length or of something else."""
    values = [value.strip() for value in written.split(",")]
    if values[0].upper() in _PRESETS and len(values) == 1:
        return dict.fromkeys(_LISTS[26], _PRESETS[values[0].upper()])
    if wrong := next((value for value in values if not re.fullmatch(NUMBER, value)), None):
        raise RecipeError(f"{tag}: lbw={wrong[:40]!r} is no number; of presets only ALL and NONE are known.")
    if not all(isfinite(float(value)) for value in values):
        raise RecipeError(f"{tag}: lbw holds too large a number.")
    if len(values) not in _LISTS:
        known = ", ".join(map(str, sorted(_LISTS)))
        raise RecipeError(f"{tag}: lbw has {len(values)} numbers; lists of {known} have a meaning.")
    return dict(zip(_LISTS[len(values)], map(float, values)))


def layer_weights(
    blocks: dict[str, float], keys: Iterable[str], layers_per_block: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Canonical key -> weight, and the keys that lie in blocks without one: those keep 1."""
    weights, without = {}, []
    for key in keys:
        block = block_of(key, layers_per_block)
        if block in blocks:
            weights[key] = blocks[block]
        else:
            without.append(key)
    return weights, tuple(without)


def block_of(key: str, layers_per_block: int) -> str:
    """The original implementation's block of a layer: each level of the U-Net is its layers and a change of size."""
    part, _, path = key.partition(".")
    if part != "denoiser":
        return "BASE"
    if path.startswith("conv_in"):
        return "IN00"
    if path.startswith("mid_block"):
        return "M00"
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", path):
        level, kind, number = int(match[2]), match[3], int(match[4])
        if match[1] == "down":
            within = layers_per_block if kind == "downsamplers" else number
            return f"IN{level * (layers_per_block + 1) + within + 1:02d}"
        within = layers_per_block if kind == "upsamplers" else number
        return f"OUT{level * (layers_per_block + 1) + within:02d}"
    return ""

"""Layer names of kohya's files: a module's path with underscores for dots, after a prefix for the
part.

The way back is not a table but a grammar: every name that a family's modules use is one of its
words, and the longest word wins, so no model is needed to tell `to_out_0` (`to_out.0`) from
`proj_out`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from konomi.families import known_family
from konomi.families.family import DENOISER
from konomi.families.foreign_names import kohya_prefix, part_of_kohya_prefix, path_words
from konomi.families.recognition import families_of_contexts
from konomi.formats.ldm_keys import (
    UNetLayout,
    diffusers_unet_module_to_ldm,
    ldm_unet_module_to_diffusers,
    published_layout,
    published_layouts,
    unet_modules,
)


def _grammar(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(rf"(\d+|{'|'.join(longest_first)})(?:_|$)")


_PREFIXES = part_of_kohya_prefix()
_GRAMMARS = {part: _grammar(path_words(part)) for part in _PREFIXES.values()}
_LYCORIS = "lycoris_"
"""Before any module's path, whichever part it is of (LyCORIS used as a library, SimpleTuner)."""
_OFT = "oft_unet_"
"""sd-scripts' own OFT, which it trains in the UNet alone."""
PREFIXES = (*_PREFIXES, _LYCORIS, _OFT)
_LDM = re.compile(r"(input_blocks|output_blocks|middle_block|time_embed_|label_emb|out_[02]$)")
_BLOCK = re.compile(
    r"(?:lora_unet_|lycoris_|oft_unet_|diffusion_model_)((?:input|output)_blocks_\d+_\d+)_"
)


def key_of(name: str, layout: UNetLayout | None = None) -> str | None:
    """`lora_unet_mid_block_attentions_0_proj_in` -> `denoiser.mid_block.attentions.0.proj_in`;
    None if unknown.

    Both namings of the UNet are read, diffusers' and the original one; `layout` is that of the
    original names, by default of the family whose files have them.
    """
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            path = _path(name.removeprefix(prefix), part, layout)
            return None if path is None else f"{part}.{path}"
    if name.startswith(_OFT):
        path = _path(name.removeprefix(_OFT), DENOISER, layout)
        return None if path is None else f"{DENOISER}.{path}"
    if name.startswith(_LYCORIS):
        for part in ("denoiser", "text_encoder"):
            path = _path(name.removeprefix(_LYCORIS), part, layout)
            if path is not None:
                return f"{part}.{path}"
    return None


def name_of(key: str, family: str, layout: UNetLayout | None = None) -> str:
    """The layer name that other tools expect, where a family has them the original names
    (`lora_unet_input_blocks_4_1_...`)."""
    part, _, path = key.partition(".")
    known = known_family(family)
    if part == DENOISER and known is not None and known.denoiser.kohya_original_names:
        path = diffusers_unet_module_to_ldm(path, layout or published_layout(family)) or path
    return f"{kohya_prefix(part, family)}_{path.replace('.', '_')}"


def layout_of(names: Iterable[str]) -> UNetLayout:
    """Which UNet the original block numbers belong to: the one that has most of these blocks."""
    blocks = {match[1] for name in names if (match := _BLOCK.match(name))}
    return max(published_layouts(), key=lambda layout: len(blocks & _blocks(layout)))


def layout_for(names: Iterable[str], context_widths: Collection[int]) -> UNetLayout:
    """The same, by the width of the text states that the layers read where any of them does."""
    for family in families_of_contexts(context_widths):
        if family.denoiser.file_layout == "ldm":
            return published_layout(family.name)
    return layout_of(names)


@lru_cache
def _blocks(layout: UNetLayout) -> frozenset[str]:
    """`input_blocks_4_1` and so on."""
    return frozenset(
        "_".join(name.replace(".", "_").split("_")[:4]) for name in unet_modules(layout)
    )


def is_norm(key: str) -> bool:
    """Whether a module is a normalisation, by its name."""
    return "norm" in key.rpartition(".")[2]


def _path(flat: str, part: str, layout: UNetLayout | None) -> str | None:
    if part == DENOISER and _LDM.match(flat):
        return ldm_unet_module_to_diffusers(flat, layout)
    path = _dotted(flat, _GRAMMARS[part])
    if part == DENOISER:
        return path
    # Some programs wrote the names of transformers' newest layout, which no longer has the outer
    # `text_model`.
    if path is not None and path.split(".")[0] in ("encoder", "embeddings", "final_layer_norm"):
        return f"text_model.{path}"
    return path


def _dotted(flat: str, grammar: re.Pattern[str]) -> str | None:
    words, position = [], 0
    while position < len(flat):
        match = grammar.match(flat, position)
        if match is None:
            return None
        words.append(match.group(1))
        position = match.end()
    return ".".join(words) if words and not flat.endswith("_") else None

"""Layer names of kohya's files: a module's path with underscores for dots, after a prefix for the part.

The way back is not a table but a grammar: every name a diffusers UNet or a CLIP text encoder uses is one of the words
below, and the longest word wins, so no model is needed to tell `to_out_0` (`to_out.0`) from `proj_out`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from konomi.formats.ldm_keys import (
    SD1_LAYOUT,
    SDXL_LAYOUT,
    UNetLayout,
    diffusers_unet_module_to_ldm,
    ldm_unet_module_to_diffusers,
)

_UNET_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in",
    "proj_out", "norm", "norm1", "norm2", "norm3", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_norm_out",
    "conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
)  # fmt: skip
_TEXT_WORDS = (
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2",
    "layer_norm1", "layer_norm2", "final_layer_norm", "embeddings", "token_embedding", "position_embedding",
    "text_projection",
)  # fmt: skip


def _grammar(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(rf"(\d+|{'|'.join(longest_first)})(?:_|$)")


_UNET = _grammar(_UNET_WORDS)
_TEXT = _grammar(_TEXT_WORDS)
_PREFIXES = {
    "lora_unet_": "denoiser",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
}
_LYCORIS = "lycoris_"
"""Before any module's path, whichever part it is of (LyCORIS used as a library, SimpleTuner)."""
PREFIXES = (*_PREFIXES, _LYCORIS)
_LDM = re.compile(r"(input_blocks|output_blocks|middle_block|time_embed_|label_emb|out_[02]$)")
_SD1_ONLY = re.compile(
    r"(?:lora_unet_|lycoris_|diffusion_model_)"
    r"(input_blocks_([12]_1|1[01]|9)_|output_blocks_(9|1[01])_|output_blocks_[678]_1_)"
)


def key_of(name: str, layout: UNetLayout = SDXL_LAYOUT) -> str | None:
    """`lora_unet_mid_block_attentions_0_proj_in` -> `denoiser.mid_block.attentions.0.proj_in`; None if unknown.

    Both namings of the UNet are read, diffusers' and the original one; `layout` is that of the original names.
    """
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            path = _path(name.removeprefix(prefix), part, layout)
            return None if path is None else f"{part}.{path}"
    if name.startswith(_LYCORIS):
        for part in ("denoiser", "text_encoder"):
            path = _path(name.removeprefix(_LYCORIS), part, layout)
            if path is not None:
                return f"{part}.{path}"
    return None


def has_numbered_text_encoders(names: Iterable[str]) -> bool:
    """Whether layers are called `lora_te1_` or `lora_te2_`, as only models with two text encoders have them."""
    return any(name.startswith(("lora_te1_", "lora_te2_")) for name in names)


def name_of(key: str, family: str, layout: UNetLayout | None = None) -> str:
    """The layer name that other tools expect: for SDXL the original names (`lora_unet_input_blocks_4_1_...`)."""
    part, _, path = key.partition(".")
    if part == "denoiser":
        if family == "sdxl":
            path = diffusers_unet_module_to_ldm(path, layout or SDXL_LAYOUT) or path
        prefix = "lora_unet"
    elif part == "text_encoder_2":
        prefix = "lora_te2"
    else:
        prefix = "lora_te1" if family == "sdxl" else "lora_te"
    return f"{prefix}_{path.replace('.', '_')}"


def layout_of(names: Iterable[str]) -> UNetLayout:
    """Which UNet the original block numbers belong to: SD1's has attention and blocks where SDXL's has none."""
    return SD1_LAYOUT if any(_SD1_ONLY.match(name) for name in names) else SDXL_LAYOUT


def layout_for(names: Iterable[str], context_widths: Collection[int]) -> UNetLayout:
    """The same, by the width of the text states that the layers read where any of them does."""
    if any(width in (768, 1024) for width in context_widths):
        return SD1_LAYOUT
    return SDXL_LAYOUT if 2048 in context_widths else layout_of(names)


def is_norm(key: str) -> bool:
    """Whether a module is a normalisation, by its name."""
    return "norm" in key.rpartition(".")[2]


def _path(flat: str, part: str, layout: UNetLayout) -> str | None:
    if part == "denoiser":
        if _LDM.match(flat):
            return ldm_unet_module_to_diffusers(flat, layout)
        return _dotted(flat, _UNET)
    path = _dotted(flat, _TEXT)
    # Some programs wrote the names of transformers' newest layout, which no longer has the outer `text_model`.
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

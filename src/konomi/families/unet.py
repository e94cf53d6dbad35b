"""The U-Net of Stable Diffusion (diffusers' `UNet2DConditionModel`): what its families share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from konomi.families.family import DenoiserSpec, Selectors, Shapes

ARCHITECTURE = "clip_unet"
"""What computes its families in `konomi.models.architectures`."""
UNET_PREFIX = "model.diffusion_model."

_ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r".*\.ff\.net\.(0\.proj|2)"
_PROJECTION = r".*\.attentions\.\d+\.(proj_in|proj_out)"

SELECTORS: Selectors = {
    name: re.compile(pattern)
    for name, pattern in {
        "attention": _ATTENTION,
        "attention.kv": r".*\.attn[12]\.(to_k|to_v)",
        "attention.k": r".*\.attn[12]\.to_k",
        "attention.v": r".*\.attn[12]\.to_v",
        "cross_attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
        "cross_attention.kv": r".*\.attn2\.(to_k|to_v)",
        "feed_forward": _FEED_FORWARD,
        "projection": _PROJECTION,
        "transformer": f"{_ATTENTION}|{_FEED_FORWARD}|{_PROJECTION}",
        "conv": r".*\.resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
        r"|.*\.(down|up)samplers\.\d+\.conv",
    }.items()
}
PATH_WORDS = frozenset((
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj",
    "proj_in",
    "proj_out", "norm", "norm1", "norm2", "norm3", "conv", "conv1", "conv2", "conv_in", "conv_out",
    "conv_norm_out",
    "conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
))  # fmt: skip
_CONVOLUTIONS = r"(.*\.)?(conv|conv1|conv2|conv_in|conv_out|conv_shortcut)"


def unet(
    *,
    context_width: int,
    linear_projections: bool,
    block_lists: tuple[tuple[str, ...], ...],
    kohya_original_names: bool = False,
    reads_sizes: bool = False,
) -> DenoiserSpec:
    """A U-Net of Stable Diffusion.

    context_width: of the text states that it reads.
    linear_projections: the layers around its transformers are linear, not 1x1 convolutions.
    block_lists: see `numbered_blocks`.
    """
    projections = "" if linear_projections else r"|(.*\.)?(proj_in|proj_out)"
    return DenoiserSpec(
        folder="unet",
        class_name="UNet2DConditionModel",
        file_prefix=UNET_PREFIX,
        file_layout="ldm",
        selectors=SELECTORS,
        path_words=PATH_WORDS,
        convolutions=re.compile(_CONVOLUTIONS + projections),
        width=320,
        context_width=context_width,
        block_order=("down_blocks", "mid_block", "up_blocks"),
        block_of=original_block,
        outer_block_of=outer_block,
        block_lists=block_lists,
        kohya_original_names=kohya_original_names,
        reads_sizes=reads_sizes,
    )


def holds_unet(shapes: Shapes) -> bool:
    """Whether a single file has such a U-Net, of the noise process that these families have (files
    of EDM's mark themselves).
    """
    edm = ("edm_mean", "edm_std", "edm_vpred.")
    return f"{UNET_PREFIX}input_blocks.0.0.weight" in shapes and not any(
        name.startswith(edm) for name in shapes
    )


def numbered_blocks(entry: tuple[int, ...], exit_: tuple[int, ...]) -> tuple[str, ...]:
    """BASE (the text encoder), IN01 ..., M00, OUT03 ..., as the block weight extension of web UIs
    names them.
    """
    return (
        "BASE",
        *(f"IN{number:02d}" for number in entry),
        "M00",
        *(f"OUT{number:02d}" for number in exit_),
    )


def original_block(path: str, config: Mapping[str, Any]) -> str:
    """The original implementation's block of a layer: each level of the U-Net is its layers and a
    change of size.
    """
    layers_per_block = _layers_per_block(config)
    if path.startswith("conv_in"):
        return "IN00"
    if path.startswith("mid_block"):
        return "M00"
    if match := re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", path
    ):
        level, kind, number = int(match[2]), match[3], int(match[4])
        if match[1] == "down":
            within = layers_per_block if kind == "downsamplers" else number
            return f"IN{level * (layers_per_block + 1) + within + 1:02d}"
        within = layers_per_block if kind == "upsamplers" else number
        return f"OUT{level * (layers_per_block + 1) + within:02d}"
    return ""


def outer_block(path: str, config: Mapping[str, Any]) -> str:
    """With which block a layer outside all of them goes, as supermerger has it: the last layers
    with the last OUT, what reads the time with IN00.
    """
    if not path.startswith(("conv_norm_out", "conv_out")):
        return "IN00"
    levels = len(config.get("block_out_channels", range(4)))
    return f"OUT{levels * (_layers_per_block(config) + 1) - 1:02d}"


def _layers_per_block(config: Mapping[str, Any]) -> int:
    count = config.get("layers_per_block", 2)
    return int(count if isinstance(count, int) else count[0])


SMALL = {
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "sample_size": 8,
}
"""Settings of a small U-Net that has all kinds of layers, for 64-pixel pictures; the rest is the
family's."""
SMALL_LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
"""Its levels in families that have transformers in all but the lowest."""

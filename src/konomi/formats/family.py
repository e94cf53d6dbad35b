"""Which family of models an adapter belongs to: by widths, by names, by what the file says, in this order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from konomi.adapters.adapter import Adapter, Difference, Hadamard, LayerUpdate, LowRank, Replacement

CONTEXT_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text states that cross-attention reads."""


def family_by_layers(layers: Mapping[str, LayerUpdate]) -> str:
    """From the input width of cross-attention's keys and values, and from the presence of a second text encoder."""
    for key, update in layers.items():
        if key.endswith((".attn2.to_k", ".attn2.to_v")):
            width = _input_width(update)
            if width in CONTEXT_WIDTH:
                return CONTEXT_WIDTH[width]
    if any(key.startswith("text_encoder_2.") for key in layers):
        return "sdxl"
    if any(".attentions." in key and _deep(key) for key in layers):
        return "sdxl"
    for key, update in layers.items():
        if key.startswith("text_encoder.") and key.endswith(("_proj", ".fc1")) and _input_width(update) == 1024:
            return "sd2"
    return ""


def family_by_metadata(metadata: Mapping[str, str]) -> str:
    """From `ss_base_model_version`, `ss_v2` and `modelspec.architecture`, read as A1111 does; "" if they are absent."""
    version = metadata.get("ss_base_model_version", "")
    architecture = metadata.get("modelspec.architecture", "")
    if version.startswith("sdxl_") or "stable-diffusion-xl" in architecture:
        return "sdxl"
    if metadata.get("ss_v2") == "True" or version.startswith("sd_v2") or "stable-diffusion-v2" in architecture:
        return "sd2"
    if version.startswith("sd_v1") or "stable-diffusion-v1" in architecture or metadata.get("ss_v2") == "False":
        return "sd1"
    return ""


def family_of(adapter: Adapter) -> str:
    """The family by layers, then by metadata, then by the width of embeddings; "" if nothing tells."""
    found = family_by_layers(adapter.layers) or family_by_metadata(adapter.metadata)
    if found:
        return found
    for vectors in adapter.embeddings.values():
        if "text_encoder_2" in vectors:
            return "sdxl"
        for tensor in vectors.values():
            return CONTEXT_WIDTH.get(tensor.shape[-1], "")
    return ""


def odd_context_layer(layers: Mapping[str, LayerUpdate]) -> str:
    """The first layer that reads text states of another width than the first such layer; "" if all agree."""
    first = None
    for key, update in layers.items():
        if key.endswith((".attn2.to_k", ".attn2.to_v")) and (width := _input_width(update)) is not None:
            first = width if first is None else first
            if width != first:
                return key
    return ""


def _input_width(update: LayerUpdate) -> int | None:
    match update:
        case LowRank():
            return update.down.shape[1]
        case Hadamard(t1=None):
            return update.w1_b.shape[1]
        case Difference(weight=Tensor() as weight) | Replacement(weight=weight) if weight.dim() >= 2:
            return weight.shape[1]
    return None


def _deep(key: str) -> bool:
    # Only SDXL stacks more than one transformer block in one place.
    _, _, rest = key.partition(".transformer_blocks.")
    number = rest.partition(".")[0]
    return number.isdigit() and int(number) > 0

"""ComfyUI's rules for LoRA files, embeddings and hypernetworks, as documented by what it reports
as "not loaded".

Forge reads LoRA files by the same rules. Layers are found one by one: what has no place is
skipped, the rest works.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from konomi.formats.readers.named_layers import NamedLayer
from konomi.formats.readers.reading import Reading, counted

NAME = "ComfyUI"
_KINDS = ("lora", "loha", "lokr", "glora", "oft", "boft", "diff")
_TEXT_LAYER = re.compile(
    r"text_encoder(_2)?\.text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
)
_ACTIVATIONS = {
    "linear",
    "relu",
    "leakyrelu",
    "elu",
    "swish",
    "tanh",
    "sigmoid",
    "softsign",
    "mish",
}


def lora(layers: Sequence[NamedLayer], family: str) -> Reading:
    """Layer by layer."""
    del family  # ComfyUI maps `lora_te` and `lora_te1` to the first encoder of every family.
    faults = {layer.name: reason for layer in layers if (reason := _fault(layer))}
    return counted(NAME, [layer.name for layer in layers], faults, place="models/loras")


def _fault(layer: NamedLayer) -> str:
    if layer.dialect == "bundle":
        return (
            "words inside a LoRA are not read; save the word as a file of its own "
            "(models/embeddings)"
        )
    if layer.dialect in ("diffusers", "peft") and layer.name.startswith(("unet.", "base_model.")):
        return "PEFT's names are not read for a UNet; convert with --to kohya"
    if not layer.key:
        return "no layer of the model has this name"
    if layer.is_text and not _TEXT_LAYER.fullmatch(layer.key):
        return "only projections of attention and fc1, fc2 of a text encoder are read"
    if layer.is_text and "_text_model_" not in layer.name and ".text_model." not in layer.name:
        return "a text encoder's layer is only found with text_model in its name"
    if layer.kind == "ia3":
        return "(IA)^3 is not read"
    if layer.kind not in _KINDS:
        return "its tensors form no kind of update that is read"
    if any(part.startswith("lora_magnitude_vector") for part in layer.parts):
        return "DoRA magnitudes are dropped (lora_magnitude_vector); convert with --to kohya"
    if "lora_B.bias" in layer.parts:
        return "lora_B.bias is dropped"
    return ""


def embedding(words: dict[str, dict[str, tuple[int, int]]], path_suffix: str, form: str) -> Reading:
    """The first word of a file; the file's name calls it."""
    names = list(words)
    faults = {}
    if path_suffix not in (".safetensors", ".pt", ".bin"):
        faults = dict.fromkeys(
            names, f"files ending in {path_suffix or 'nothing'} are not looked at"
        )
    elif form == "table" and len(names) > 1:
        faults = dict.fromkeys(
            names[1:], "only the first word of a file is read; one file for each word works"
        )
    return counted(NAME, names, faults, unit="words", place="models/embeddings")


def hypernetwork(widths: Sequence[int], activation: str, path_suffix: str) -> Reading:
    """One network a width."""
    names = [str(width) for width in widths]
    reason = "" if activation in _ACTIVATIONS else f"activation {activation!r} is not known there"
    if path_suffix != ".pt":
        reason = "only .pt files hold a hypernetwork there; convert to a name that ends in .pt"
    place = "models/hypernetworks (node HypernetworkLoader)"
    return counted(
        NAME, names, dict.fromkeys(names, reason) if reason else {}, unit="widths", place=place
    )

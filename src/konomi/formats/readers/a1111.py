"""A1111's rules (1.10) for LoRA files, embeddings and hypernetworks, from what it documents and
reports.

It looks each layer up among the model's modules; one whose tensors it knows no kind for stops the
whole file ("Could not find a module type").
"""

from __future__ import annotations

from collections.abc import Sequence

from konomi.families import known_family
from konomi.formats.readers.named_layers import NamedLayer
from konomi.formats.readers.reading import Reading, counted, refused

NAME = "A1111"
_PLACE = "models/Lora"


def lora(layers: Sequence[NamedLayer], family: str) -> Reading:
    """Layer by layer, unless one stops the file."""
    names = [layer.name for layer in layers]
    faults = {layer.name: reason for layer in layers if (reason := _fault(layer, family))}
    stops = next(
        (layer for layer in layers if layer.name not in faults and not _has_type(layer)), None
    )
    if stops is not None:
        return refused(
            NAME,
            names,
            f"the file is not loaded: it knows no module type for {stops.name}",
            place=_PLACE,
        )
    return counted(NAME, names, faults, place=_PLACE)


def _has_type(layer: NamedLayer) -> bool:
    if layer.dialect == "bundle":
        return True
    parts = set(layer.parts)
    if layer.kind == "diff":
        return "diff" in parts or {"w_norm", "b_norm"} <= parts
    return layer.kind in ("lora", "loha", "lokr", "ia3", "glora", "oft")


def _fault(layer: NamedLayer, family: str) -> str:
    known = known_family(family)
    if layer.dialect == "bundle":
        return ""
    if layer.dialect != "kohya":
        return f"names of {layer.dialect} are not read; convert with --to kohya"
    if not layer.key:
        return "no layer of the model has this name"
    if layer.is_text:
        if "_text_model_" not in layer.name:
            return "a text encoder's layer is only found with text_model in its name"
        prefixes = (
            [] if known is None else [encoder.kohya_prefix for encoder in known.text_encoders]
        )
        if known and not layer.name.startswith(tuple(f"{prefix}_" for prefix in prefixes)):
            if len(prefixes) == 1:
                return f"this model's one text encoder is {prefixes[0]} there"
            return f"{known.title}'s text encoders are {' and '.join(prefixes)} there"
        if ".encoder.layers." not in layer.key:
            return "only the layers of a text encoder are found"
    scale = layer.parts.get("dora_scale")
    if scale is not None and not (len(scale) >= 2 and scale[0] == 1):
        return (
            "DoRA magnitudes per output are taken for magnitudes per input: the layer means "
            "something else there"
        )
    return ""


def embedding(words: dict[str, dict[str, tuple[int, int]]], path_suffix: str, form: str) -> Reading:
    """One word a file; the file's name calls it."""
    names = list(words)
    if path_suffix not in (".safetensors", ".pt", ".bin", ".png", ".webp", ".jxl", ".avif"):
        reason = f"files ending in {path_suffix or 'nothing'} are not looked at"
        return refused(NAME, names, reason, unit="words", place="embeddings")
    if form == "table" and len(names) > 1:
        reason = "the file is not loaded: it holds several words; one file for each word works"
        return refused(NAME, names, reason, unit="words", place="embeddings")
    return counted(NAME, names, {}, unit="words", place="embeddings")


def hypernetwork(widths: Sequence[int], activation: str, path_suffix: str) -> Reading:
    """Only `.pt` files."""
    del activation  # All of PyTorch's are known there.
    names = [str(width) for width in widths]
    if path_suffix != ".pt":
        reason = "only .pt files hold a hypernetwork there; convert to a name that ends in .pt"
        return refused(NAME, names, reason, unit="widths", place="models/hypernetworks")
    return counted(NAME, names, {}, unit="widths", place="models/hypernetworks")

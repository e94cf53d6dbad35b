"""diffusers' rules (`load_lora_weights`, `load_textual_inversion`), as its public loaders have
them.

A kohya file is taken whole or not at all: one tensor that is not a plain LoRA's ends in an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from konomi.families import FAMILIES
from konomi.families.foreign_names import part_of_folder
from konomi.formats.readers.named_layers import NamedLayer
from konomi.formats.readers.reading import Reading, counted, refused

NAME = "diffusers"
_LORA, _WORD = "pipe.load_lora_weights(FILE)", "pipe.load_textual_inversion(FILE)"
_PLAIN = {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"}


def lora(layers: Sequence[NamedLayer], family: str, alphas: Mapping[str, float]) -> Reading:
    """`alphas`: layer name -> alpha, where the file has one."""
    names = [layer.name for layer in layers]
    if all(layer.dialect == "kohya" for layer in layers):
        for layer in layers:
            if extra := set(layer.parts) - _PLAIN:
                reason = (
                    f"the file is not loaded: {layer.name}.{min(extra)} is not a plain LoRA's "
                    "tensor"
                )
                return refused(NAME, names, reason, place=_LORA)
        faults = _kohya_faults(layers, family, alphas)
        return counted(NAME, names, faults, place=_LORA)
    if any(layer.dialect == "peft" for layer in layers):
        reason = "PEFT's folders are loaded with PeftModel.from_pretrained(pipe.unet, FOLDER) alone"
        return refused(NAME, names, reason, place="peft.PeftModel")
    for layer in layers:
        for part in layer.parts:
            if "lora" not in f"{layer.name}.{part}" and layer.dialect != "diffusers 2023":
                reason = (
                    f"the file is not loaded: {layer.name}.{part} has no lora in its name".replace(
                        "..", "."
                    )
                )
                return refused(NAME, names, reason, place=_LORA)
    faults = {}
    for layer in layers:
        if layer.dialect not in ("diffusers", "diffusers 2023"):
            faults[layer.name] = (
                f"names of {layer.dialect} are not read beside others; convert with --to diffusers"
            )
        elif not layer.key:
            faults[layer.name] = "no layer of the model has this name"
        elif not layer.name.startswith(tuple(f"{folder}." for folder in part_of_folder())):
            faults[layer.name] = (
                "without unet. in front of its name it is ignored; convert with --to diffusers"
            )
    return counted(NAME, names, faults, place=_LORA)


def _kohya_faults(
    layers: Sequence[NamedLayer], family: str, alphas: Mapping[str, float]
) -> dict[str, str]:
    faults: dict[str, str] = {}
    names = {layer.name for layer in layers}
    both = {
        layer.writes_original_names for layer in layers if layer.key.startswith("denoiser.")
    } == {True, False}
    usual = {part: _usual_alpha(layers, alphas, part) for part in part_of_folder().values()}
    original = [known for known in FAMILIES if known.denoiser.kohya_original_names]
    for layer in layers:
        part = layer.key.partition(".")[0]
        if not layer.key:
            faults[layer.name] = "no layer of the model has this name"
        elif layer.writes_original_names and (
            both or family not in [known.name for known in original]
        ):
            who = ", ".join(known.title for known in original)
            faults[layer.name] = (
                f"the original names of a UNet's layers are only read for {who}, and not beside "
                "others"
            )
        elif layer.is_text and "_text_model_" not in layer.name:
            faults[layer.name] = "a text encoder's layer is only found with text_model in its name"
        elif "dora_scale" in layer.parts:
            faults[layer.name] = (
                "DoRA magnitudes are dropped (dora_scale); save.format or --to diffusers keeps them"
            )
        elif (
            layer.is_text
            and _projection(layer) in ("q", "k", "v")
            and _out_proj(layer) not in names
        ):
            faults[layer.name] = (
                "without an out_proj beside them, a text encoder's q, k and v are dropped"
            )
        elif (
            layer.name in alphas
            and alphas[layer.name] != usual[part]
            and (layer.is_text or _projection(layer))
        ):
            faults[layer.name] = (
                "its alpha differs from most of the file, and only the most common one is used"
            )
    return faults


def _projection(layer: NamedLayer) -> str:
    """`q`, `k`, `v` or `out` of attention, whose names are rewritten on the way; "" for other
    layers.
    """
    match = re.search(
        r"\.(?:self_attn\.(q|k|v|out)_proj|attn[12]\.to_(q|k|v|out)(?:\.0)?)$", layer.key
    )
    return (match[1] or match[2]) if match else ""


def _out_proj(layer: NamedLayer) -> str:
    return re.sub(r"_[qkv]_proj$", "_out_proj", layer.name)


def _usual_alpha(
    layers: Sequence[NamedLayer], alphas: Mapping[str, float], part: str
) -> float | None:
    found = Counter(
        alphas[x.name] for x in layers if x.key.partition(".")[0] == part and x.name in alphas
    )
    return found.most_common(1)[0][0] if found else None


def embedding(words: dict[str, dict[str, tuple[int, int]]], path_suffix: str, form: str) -> Reading:
    """One word and one text encoder a file, unless it is handed over by parts."""
    names = list(words)
    if path_suffix == ".png":
        return refused(NAME, names, "pictures are not read", unit="words", place=_WORD)
    if any(len(parts) > 1 for parts in words.values()):
        place = (
            "pipe.load_textual_inversion(tensors['clip_l'], token=..., text_encoder=..., "
            "tokenizer=...), then clip_g"
        )
        return counted(NAME, names, {}, unit="words", place=place)
    if form == "table" and len(names) > 1:
        return refused(
            NAME, names, "the file is not loaded: it holds several words", unit="words", place=_WORD
        )
    place = _WORD if form == "table" else "pipe.load_textual_inversion(FILE, token=WORD)"
    return counted(NAME, names, {}, unit="words", place=place)


def hypernetwork(widths: Sequence[int], activation: str, path_suffix: str) -> Reading:
    """None."""
    del activation, path_suffix
    return refused(NAME, map(str, widths), "hypernetworks are not read", unit="widths")

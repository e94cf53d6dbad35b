"""diffusers' LoRA files, `pytorch_lora_weights.safetensors`: written as diffusers loads them, read
in four generations.

| generation | down half of a query projection |
|---|---|
| 2023-01 | `down_blocks...attn1.processor.to_q_lora.down.weight`, `to_out_lora`; no `unet.` at
first |
| 2023-06 | `unet.down_blocks...attn1.to_q.lora.down.weight`; text
`...q_proj.lora_linear_layer.down.weight` |
| 2023-12 | `unet.down_blocks...attn1.to_q.lora_A.weight` (PEFT) |
| 2025 | the same, with the settings as JSON in the metadata `lora_adapter_metadata` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate
from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.families.family import DENOISER
from konomi.families.foreign_names import folder_of_part, part_of_folder
from konomi.formats.family import family_of
from konomi.formats.kohya import cast_floats, embedding_parts
from konomi.formats.layers import LayerError, layer_from_parts
from konomi.formats.peft_config import (
    PeftConfig,
    layer_from_peft,
    named,
    peft_tensors,
    read_config,
    split_parts,
)
from konomi.formats.source import DIFFUSERS_LORA_NAME, Parsed, Source, fault
from konomi.formats.unused import METADATA
from konomi.formats.writer import Writer
from konomi.storage.tensor_file import write_tensors

NAME = "diffusers"
_SETTINGS = "lora_adapter_metadata"
_PARTS = part_of_folder()
_COMPONENT = "|".join(_PARTS)
_TENSOR = re.compile(
    rf"(?:(?P<component>{_COMPONENT})\.)?(?:base_model\.model\.)?(?P<path>.+?)\.(?:"
    r"(?:(?:processor\.)?(?P<projection>to_q|to_k|to_v|to_out)_lora|lora|lora_linear_layer)\.(?P<old>down|up)\.weight"
    r"|lora_(?P<new>[AB])(?:\.[^.]+)?\.weight|(?P<bias>lora_B)(?:\.[^.]+)?\.bias"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?"
    r"|(?P<alpha>alpha))"
)
_RECOGNISED = re.compile(
    r".*(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight"
    rf"|({_COMPONENT})\..*\.lora_[AB]\.(\w+\.)?weight"
)
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def recognise(source: Source) -> bool:
    """Whether tensors are named in one of the generations."""
    return any(_RECOGNISED.fullmatch(name) for name in source.shapes)


def parse(source: Source) -> Parsed:
    """Read a file of any generation. Raises FileFormatError naming a tensor whose partner or rank
    is wrong.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in source.tensors().items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            unknown.append(name)
            continue
        halves.setdefault(_key(match), {})[_role(match)] = tensor
    settings = _settings(source)
    ranks: dict[str, dict[str, int]] = {part: {} for part in settings}
    layers: dict[str, LayerUpdate] = {}
    for key, parts in halves.items():
        magnitude = parts.pop("dora_scale", None)
        try:
            layer = layer_from_parts(parts).as_low_rank()
        except LayerError as error:
            half = {"lora_down.weight": "down", "lora_up.weight": "up"}.get(error.part, error.part)
            raise fault(source.path, f"{key} ({half})" if half else key, error.what) from error
        assert layer is not None
        alpha = layer.alpha
        part, _, path = key.partition(".")
        if part in settings and "alpha" not in parts:
            alpha = settings[part].alpha_of(path, layer.down.shape[0])
        if part in settings:
            ranks[part][path] = layer.down.shape[0]
        layers[key] = layer_from_peft(layer, magnitude, alpha)
    metadata = {
        name: value for name, value in source.metadata.items() if name not in ("format", _SETTINGS)
    }
    adapter = Adapter(layers, {}, metadata, "", source.name)
    notes = tuple(
        note for part, config in settings.items() for note in config.contradictions(ranks[part])
    )
    used = frozenset([*source.shapes, f"{METADATA}{_SETTINGS}"])
    return Parsed(named(adapter), tuple(sorted(unknown)), notes=notes, used=used)


def write(adapter: Adapter, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Write a file with the scale multiplied into `lora_B`, so that every reader gets it right
    without settings.

    `path` is a folder or a `.safetensors` file. Token embeddings, which the format lacks, become
    files beside it. Raises FileFormatError for layers that are not low rank.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        path = path / DIFFUSERS_LORA_NAME
    tensors: dict[str, Tensor] = {}
    family = adapter.family or family_of(adapter)
    components = folder_of_part(family)
    for part, layers in split_parts(adapter, str(path)).items():
        scaled = {name: layer.folded(dtype) for name, layer in layers.items()}
        for name, tensor in peft_tensors(scaled, family if part == "denoiser" else "").items():
            tensors[f"{components[part]}.{name}"] = tensor
    if not tensors:
        raise FileFormatError(f"{path}: the adapter has no layers, so there is no LoRA to write.")
    kept = {
        name: value
        for name, value in adapter.metadata.items()
        if not name.startswith(("sshs_", "modelspec.hash"))
    }
    write_tensors(path, tensors, kept | {"format": "pt"})
    for token, vectors in adapter.embeddings.items():
        stem = re.sub(r"[^\w-]+", "", token) or "token"
        beside = path.with_name(f"{path.stem}.{stem}.safetensors")
        contents = (
            {token: vectors["text_encoder"]} if len(vectors) == 1 else embedding_parts(vectors)
        )
        write_tensors(beside, cast_floats(contents, dtype), {"format": "pt"})


def _key(match: re.Match[str]) -> str:
    path, projection = match["path"], match["projection"]
    part = _PARTS[match["component"]] if match["component"] else DENOISER
    if projection and part == "denoiser":
        path = f"{path}.{projection.replace('to_out', 'to_out.0')}"
    elif projection:
        path = f"{path}.{_TEXT_PROJECTIONS[projection]}"
    if part != "denoiser" and path.startswith(("encoder.", "embeddings.", "final_layer_norm")):
        path = f"text_model.{path}"
    return f"{part}.{path}"


def _role(match: re.Match[str]) -> str:
    if match["alpha"]:
        return "alpha"
    if match["bias"]:
        return "lora_up.bias"
    if match["magnitude"]:
        return "dora_scale"
    return "lora_down.weight" if match["old"] == "down" or match["new"] == "A" else "lora_up.weight"


def _settings(source: Source) -> dict[str, PeftConfig]:
    """Part -> settings, from the optional JSON (`unet.lora_alpha`, `text_encoder.alpha_pattern`,
    ...).
    """
    if _SETTINGS not in source.metadata:
        return {}
    where = f"{source.path}: metadata {_SETTINGS}"
    try:
        table = parse_json(source.metadata[_SETTINGS])
    except ValueError as error:
        raise FileFormatError(f"{where} is not JSON ({error}).") from error
    if not isinstance(table, dict):
        raise FileFormatError(f"{where} is not a table.")
    return {part: read_config(entries, where) for part, entries in _by_part(table).items()}


def _by_part(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in table.items():
        component, _, setting = name.partition(".")
        if component in _PARTS and setting:
            found.setdefault(_PARTS[component], {})[setting] = value
    return found


WRITERS = (
    Writer(
        "lora",
        ("diffusers",),
        ".safetensors",
        lambda a, path, o: write(a, path, dtype=o.dtype),
        ("",),
    ),
)

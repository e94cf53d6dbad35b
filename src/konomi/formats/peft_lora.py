"""PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, one folder for each part of
the model.

An adapter of one part is the folder itself; of several parts, it has `unet`, `text_encoder`,
`text_encoder_2` inside.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate, LowRank
from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.families.foreign_names import folder_of_part, part_of_folder
from konomi.formats.family import family_of
from konomi.formats.kohya import cast_floats
from konomi.formats.layers import LayerError, layer_from_parts
from konomi.formats.peft_config import (
    SUBTRACTED,
    PeftConfig,
    layer_from_peft,
    named,
    peft_tensors,
    read_config,
    split_parts,
)
from konomi.formats.peft_kinds import (
    by_part,
    canonical,
    kind_of_config,
    kind_to_write,
    read_kind,
    tensors_and_config,
)
from konomi.formats.peft_start import StartError, start_of
from konomi.formats.source import PEFT_CONFIG_NAME, PEFT_WEIGHTS, Parsed, Source, fault, open_source
from konomi.formats.unused import joined, prefixed, with_unused_named
from konomi.formats.writer import Writer
from konomi.storage.atomic import write_folder
from konomi.storage.sniff import FileKind
from konomi.storage.tensor_file import write_tensors

NAME = "peft"
WeightOf = Callable[[str], Tensor]
"""Canonical key -> a base's own weight."""
_FOLDERS = part_of_folder()
_ROLES = {
    ("lora_A", "weight"): "lora_down.weight",
    ("lora_B", "weight"): "lora_up.weight",
    ("lora_B", "bias"): "lora_up.bias",
    ("lora_magnitude_vector", "weight"): "dora_scale",
}
_PREFIX = "base_model.model."
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<path>.+?)\.(?P<role>lora_A|lora_B|lora_magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
)
CONFIG = f"{PEFT_CONFIG_NAME} "
"""Before the name of a field that is not used."""
_MAX_CONFIG = 16 << 20


def recognise(source: Source) -> bool:
    """Whether a folder, or one of its parts' folders, holds a PEFT configuration, or a file the
    halves of PEFT's layers without a part before them.
    """
    if source.kind is FileKind.FOLDER:
        return bool(_part_folders(source.path))
    return any(
        (match := _TENSOR.fullmatch(name)) and match["role"] != "lora_magnitude_vector"
        for name in source.shapes
    )


def parse(source: Source, weight_of: WeightOf | None = None) -> Parsed:
    """Read the folder. Raises FileFormatError for other PEFT types, missing files and unpaired
    halves.

    `weight_of`: canonical key -> the base's own weight, for adapters that fit what PiSSA or OLoRA
    left of it.
    """
    if source.kind is not FileKind.FOLDER:
        parsed = _read_weights(source, "", PeftConfig(None))
        adapter = replace(parsed.adapter, metadata=dict(source.metadata), name=source.name)
        note = (
            f"no {PEFT_CONFIG_NAME} lies beside it, so lora_alpha is taken to be the rank "
            "(scale 1)."
        )
        return replace(parsed, adapter=named(adapter), notes=(note,))
    layers: dict[str, LayerUpdate] = {}
    parts = [_read_part(part, folder, weight_of) for part, folder in _part_folders(source.path)]
    for part in parts:
        layers |= part.adapter.layers
    unknown = tuple(sorted(name for part in parts for name in part.unknown))
    ignored, notes = joined(parts)
    return Parsed(named(Adapter(layers, {}, {}, "", source.name)), unknown, ignored, notes)


def write(
    adapter: Adapter,
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    base_name: str = "",
    replace_folder: bool = False,
) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads. Without `replace_folder` it must not
    exist yet.

    Raises FileFormatError for layers that are not low rank and for embeddings, which PEFT folders
    do not hold.
    """
    path = Path(path)
    if adapter.embeddings:
        raise FileFormatError(
            f"{path}: PEFT folders hold no token embeddings. Convert with --to kohya or diffusers."
        )
    kind = kind_to_write(adapter)
    if not adapter.layers:
        raise FileFormatError(f"{path}: the adapter has no layers, so there is no LoRA to write.")
    family = adapter.family or family_of(adapter)
    names = folder_of_part(family)
    if kind is None:
        contents = {
            part: _lora_contents(layers, family if part == "denoiser" else "", base_name)
            for part, layers in split_parts(adapter, str(path)).items()
        }
    else:
        contents = {
            part: tensors_and_config(kind, layers, base_name, path)
            for part, layers in by_part(adapter).items()
        }
    with write_folder(path, replace=replace_folder) as temporary:
        for part, (tensors, table) in contents.items():
            folder = temporary if list(contents) == ["denoiser"] else temporary / names[part]
            folder.mkdir(exist_ok=True)
            write_tensors(folder / PEFT_WEIGHTS[0], cast_floats(tensors, dtype), {"format": "pt"})
            config = json.dumps(table, indent=2) + "\n"
            (folder / PEFT_CONFIG_NAME).write_text(config, encoding="utf-8")


def _lora_contents(
    layers: dict[str, LowRank], family: str, base_name: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = peft_tensors(layers, family)
    named_tensors = {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}
    return named_tensors, _config(layers, base_name)


def _config(layers: dict[str, LowRank], base_name: str) -> dict[str, Any]:
    ranks = {path: layer.down.shape[0] for path, layer in layers.items()}
    alphas = {
        path: int(a) if (a := layer.alpha).is_integer() else a for path, layer in layers.items()
    }
    rank, alpha = statistics.mode(ranks.values()), statistics.mode(alphas.values())
    return {
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "base_model_name_or_path": base_name or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_bias": any(layer.bias is not None for layer in layers.values()),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": LowRank.about.peft_type,
        "r": rank,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "target_modules": sorted(layers),
        "task_type": None,
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        "use_rslora": False,
    }


def _part_folders(folder: Path) -> list[tuple[str, Path]]:
    if (folder / PEFT_CONFIG_NAME).is_file():
        return [("", folder)]
    return [
        (part, folder / name)
        for name, part in _FOLDERS.items()
        if (folder / name / PEFT_CONFIG_NAME).is_file()
    ]


def _read_part(part: str, folder: Path, weight_of: WeightOf | None) -> Parsed:
    table, where = _read_json(folder / PEFT_CONFIG_NAME), str(folder / PEFT_CONFIG_NAME)
    kind = kind_of_config(table)
    config = read_config(table, where) if kind is None else None
    path = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileFormatError(f"{folder}: holds {PEFT_CONFIG_NAME} but no {PEFT_WEIGHTS[0]}.")
    source = open_source(path, alone=True)
    if kind is not None:
        part = part or _FOLDERS.get(folder.name, "")
        found = read_kind(kind, part, source, table, where)
        return with_unused_named(source, replace(found, ignored=prefixed(found.ignored, CONFIG)))
    assert config is not None
    parsed = with_unused_named(source, _read_weights(source, part, config))
    return _less_initial(parsed, part, folder, config, weight_of) if config.init else parsed


def _less_initial(
    parsed: Parsed, part: str, folder: Path, config: PeftConfig, weight_of: WeightOf | None
) -> Parsed:
    """The change from the base itself, of an adapter that fits what its start left of the base: B
    A - B0 A0.

    The start is looked for where PEFT's guides save it, in `pissa_init` and the like, inside the
    folder or beside it. PiSSA's and OLoRA's follow from the base's weights as well. Raises
    FileFormatError where neither is there.
    """
    kind = next(name for name in SUBTRACTED if config.init.lower().startswith(name))
    places = [place / f"{kind}_init" for place in (folder, folder.parent)]
    found = next((place for place in places if (place / PEFT_CONFIG_NAME).is_file()), None)
    can_compute = config.init.lower() in ("pissa", "olora")
    if found is None and weight_of is not None and can_compute:
        return _less_computed(parsed, folder, config, weight_of)
    if found is None:
        advice = (
            "Convert it with the base it was trained on: konomi convert IN OUT --base BASE. Or: "
            * can_compute
        )
        raise FileFormatError(
            f"{folder}: init_lora_weights is {config.init!r}: the adapter fits a base from which "
            f"its start was taken off, not the base itself. {advice}Put the start as {kind}_init "
            "into the folder, or load the adapter in PEFT and save it again: "
            "save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START), where START "
            "is the adapter as it was saved before training."
        )
    weights = next((found / name for name in PEFT_WEIGHTS if (found / name).is_file()), None)
    if weights is None:
        raise FileFormatError(f"{found}: holds {PEFT_CONFIG_NAME} but no {PEFT_WEIGHTS[0]}.")
    start = _read_weights(
        open_source(weights, alone=True), part, replace(config, ignored={})
    ).adapter.layers
    layers: dict[str, LayerUpdate] = {}
    for key, layer in parsed.adapter.layers.items():
        first = start[key].as_low_rank() if key in start else None
        last = layer.as_low_rank()
        if last is None or first is None or last.magnitude is not None:
            raise FileFormatError(
                f"{found}: does not tell how {key} started, so it cannot be converted."
            )
        if last.down.shape != first.down.shape or last.up.shape != first.up.shape:
            raise FileFormatError(
                f"{found}: {key} is of another size there, so it is another adapter's start."
            )
        layers[key] = _minus(last, first.down, first.up)
    note = f"{config.init}: converted to plain LoRA of twice the rank with the start in {found}."
    return replace(
        parsed, adapter=replace(parsed.adapter, layers=layers), notes=(*parsed.notes, note)
    )


def _less_computed(parsed: Parsed, folder: Path, config: PeftConfig, weight_of: WeightOf) -> Parsed:
    """The same with the start computed from the base's weights, as PEFT does when it loads such an
    adapter.
    """
    layers: dict[str, LayerUpdate] = {}
    for key, layer in parsed.adapter.layers.items():
        last = layer.as_low_rank()
        if last is None or last.magnitude is not None:
            raise FileFormatError(
                f"{folder}: {key} is DoRA as well, so its start cannot be taken off."
            )
        weight, (outputs, rank), inputs = weight_of(key), last.up.shape[:2], last.down.shape[1]
        if weight.shape[:2] != (outputs, inputs):
            raise FileFormatError(
                f"{folder}: {key} does not fit the base's weight {list(weight.shape)}: another "
                "base."
            )
        try:
            down, up = start_of(config.init.lower(), weight, rank, last.alpha / rank)
        except StartError as error:
            raise FileFormatError(
                f"{folder}: the {config.init} start of {key} cannot be computed: {error}."
            ) from error
        layers[key] = _minus(last, down, up)
    note = (
        f"{config.init}: converted to plain LoRA of twice the rank with the start computed from "
        "the base, which is right for the base it was trained on and no other."
    )
    return replace(
        parsed, adapter=replace(parsed.adapter, layers=layers), notes=(*parsed.notes, note)
    )


def _minus(layer: LowRank, down: Tensor, up: Tensor) -> LowRank:
    """scale (B A - B0 A0), as one layer of both ranks."""
    both = (
        torch.cat([layer.down, down.to(layer.down)]),
        torch.cat([layer.up, -up.to(layer.up)], dim=1),
    )
    return LowRank(*both, 2 * layer.alpha, None, None, layer.bias)


def _read_weights(source: Source, part: str, config: PeftConfig) -> Parsed:
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    tensors = source.tensors()
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        role = _ROLES.get((match["role"], match["kind"] or "weight")) if match else None
        if match is None or role is None:
            unknown.append(name)
        else:
            halves.setdefault(match["path"], {})[role] = tensor
    config.check_patterns(halves)
    part = part or _part_of(source.path.parent, halves)
    layers: dict[str, LayerUpdate] = {}
    ranks: dict[str, int] = {}
    for module, parts in halves.items():
        magnitude = parts.pop("dora_scale", None)
        try:
            layer = layer_from_parts(parts).as_low_rank()
        except LayerError as error:
            raise fault(
                source.path, f"{module} ({error.part})" if error.part else module, error.what
            ) from error
        assert layer is not None
        alpha = config.alpha_of(module, layer.down.shape[0])
        layers[canonical(module, part)] = layer_from_peft(layer, magnitude, alpha)
        ranks[module] = layer.down.shape[0]
    notes = config.contradictions(ranks)
    return Parsed(
        Adapter(layers),
        tuple(unknown),
        prefixed(config.ignored, CONFIG),
        notes,
        used=frozenset(tensors),
    )


def _part_of(folder: Path, paths: Iterable[str]) -> str:
    """Which part of a model an adapter of one part is for: as its folder is called, else by its
    layers.
    """
    if folder.name in _FOLDERS:
        return _FOLDERS[folder.name]
    return (
        "text_encoder"
        if any("self_attn." in path or "mlp.fc" in path for path in paths)
        else "denoiser"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG:
        raise FileFormatError(
            f"{path}: {path.stat().st_size} bytes are too many for a configuration."
        )
    try:
        table = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path}: is not JSON ({error}).") from error
    if not isinstance(table, dict):
        raise FileFormatError(f"{path}: is not a table.")
    return table


WRITERS = (
    Writer(
        "lora",
        ("peft",),
        "",
        lambda a, path, o: write(a, path, dtype=o.dtype, replace_folder=o.replace_folder),
    ),
)

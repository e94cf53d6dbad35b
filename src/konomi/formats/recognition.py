"""What a file is that holds no LoRA: checkpoints, aesthetic embeddings, networks of starts,
folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.config.parse import parse_json
from konomi.families import FAMILIES, titles
from konomi.families.family import Family, TextEncoderSpec
from konomi.families.recognition import (
    denoiser_folders,
    family_of_context,
    family_of_folder,
    family_of_single_file,
    family_of_vectors,
)
from konomi.formats import aesthetic, start_network
from konomi.formats.source import Source
from konomi.formats.unsupported import holds_updates, other_family, other_kind
from konomi.storage.sniff import FileKind
from konomi.storage.tensor_file import read_tensors

_TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"
_LDM_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_EMA = {"model_ema.": "denoiser (EMA)"}
_CHANNELS = {9: "inpainting (9 input channels)", 8: "image editing (8 input channels)"}


@dataclass(frozen=True, slots=True)
class Recognised:
    """A kind and what can be told of it without knowing the family's code."""

    kind: str
    format: str
    family: str = ""
    name: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tensors: Callable[[], dict[str, Tensor]] = dict
    """Reads the tensors, named, for a look at their numbers."""
    problem: str = ""
    """Why nothing can be done with it, as the end of a sentence on the file."""


def recognise(source: Source) -> Recognised:
    """Tell what a source is; kind "unknown tensors" if nothing fits."""
    if source.kind is FileKind.FOLDER:
        return _folder(source)
    if start_network.recognise(source):
        return _start_network(source)
    return _aesthetic(source) if aesthetic.recognise(source) else _table(source)


def unsupported_kind_of(source: Source) -> str:
    """What a LoRA is that konomi cannot load by its family or kind, as the end of a sentence; ""
    for all others.
    """
    names = source.shapes
    if not names:
        return ""
    name, kind = other_kind(names)
    if kind:
        return f"{name} belongs to {kind}, a kind of update that konomi does not apply"
    family = _other_family(source) if holds_updates(names) else ""
    return f"is for {family}; konomi works with {titles('and')}" if family else ""


def _other_family(source: Source) -> str:
    widths = {shape[1] for shape in source.shapes.values() if len(shape) == 2}
    return other_family(source.shapes, source.metadata, widths)


def _table(source: Source) -> Recognised:
    shapes = source.shapes
    if what := unsupported_kind_of(source):
        kind, family = other_kind(shapes)[1], _other_family(source)
        return Recognised(
            kind or "lora",
            "unknown",
            family,
            notes=(f"{what}.",),
            problem=f"{what}.",
            tensors=source.tensors,
        )
    if any(name.startswith("model.diffusion_model.") for name in shapes):
        return _ldm_checkpoint(source)
    if "conv_in.weight" in shapes and any(name.startswith("down_blocks.") for name in shapes):
        family, notes = (
            _name(family_of_context(_context_width(shapes))),
            _channel_notes(shapes["conv_in.weight"]),
        )
        return Recognised("denoiser", "diffusers", family, notes=notes, tensors=source.tensors)
    if any(name.startswith("first_stage_model.") for name in shapes) or {
        "encoder.conv_in.weight"
    } <= set(shapes):
        return Recognised("vae", "checkpoint", tensors=source.tensors)
    if not holds_updates(shapes) and any(
        name.endswith("text_model.embeddings.token_embedding.weight") for name in shapes
    ):
        return Recognised("text encoder", "transformers", tensors=source.tensors)
    if family := _other_family(source):
        note = f"is a model of {family}; konomi works with {titles('and')}."
        return Recognised(
            "model of another family",
            "checkpoint",
            family,
            notes=(note,),
            problem=note,
            tensors=source.tensors,
        )
    note = f"none of its {len(shapes)} names is known; the first is {next(iter(shapes), '(none)')}"
    return Recognised(
        "unknown tensors",
        str(source.kind.name).lower(),
        notes=(note,),
        problem=f"{note}.",
        tensors=source.tensors,
    )


def _ldm_checkpoint(source: Source) -> Recognised:
    shapes = source.shapes
    # A denoiser without its text encoders is no whole model, but tells its family.
    family = _name(family_of_single_file(shapes) or family_of_context(_context_width(shapes)))
    prefixes = _part_prefixes()
    counts: Counter[str] = Counter()
    for name in shapes:
        counts[
            next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "other")
        ] += 1
    notes = list(_channel_notes(shapes.get(_LDM_INPUT, ())))
    missing = [part for part in ("vae", "text_encoder") if part not in counts]
    if missing:
        notes.append(f"has no {' and no '.join(missing)}")
    facts = {}
    if isinstance(source.value, dict):
        facts = {
            name: str(source.value[name])
            for name in ("epoch", "global_step")
            if name in source.value
        }
    # How NoobAI's authors say it in a table of tensors.
    facts |= {"prediction_type": "v_prediction"} if "v_pred" in shapes else {}
    facts |= {"zero_terminal_snr": "True"} if "ztsnr" in shapes else {}
    layers = dict(counts)
    return Recognised(
        "checkpoint", "single file", family, "", layers, {}, facts, tuple(notes), source.tensors
    )


def _aesthetic(source: Source) -> Recognised:
    if isinstance(source.value, Tensor):
        form, tensors = "tensor", {"tensor": source.value}
    else:
        form, tensors = "safetensors", source.tensors()
    (tensor,) = tensors.values()
    family = _name(family_of_vectors({"text_encoder": tensor.shape[-1]}))
    facts = dict(source.metadata)
    return Recognised(aesthetic.KIND, form, family, facts=facts, tensors=lambda: tensors)


def _start_network(source: Source) -> Recognised:
    known = asdict(start_network.read_facts(source.path))
    facts = {name: str(value) for name, value in known.items()}
    family = _name(family_of_vectors(known["widths"]))
    kind, name = start_network.KIND, known["base"]
    return Recognised(kind, "safetensors", family, name, facts=facts, tensors=source.tensors)


def _folder(source: Source) -> Recognised:
    folder = source.path
    index = _json(folder / "model_index.json")
    if not index and (part := _part_folder(folder)) is not None:
        return part
    if not index:
        note = "holds neither model_index.json nor adapter_config.json"
        return Recognised("folder", "unknown", notes=(note,), problem=f"{note}.")
    components = {
        name: item for name, item in index.items() if isinstance(item, list) and item[:1] != [None]
    }
    folders = {child.name for child in folder.iterdir() if child.is_dir()}
    configs = {
        name: _json(folder / name / "config.json") for name in denoiser_folders() if name in folders
    }
    family = _name(family_of_folder(folders, configs))
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    facts = {"class": str(index.get("_class_name", ""))}
    if "prediction_type" in scheduler:
        facts["prediction_type"] = str(scheduler["prediction_type"])
    channels = [config.get("in_channels") for config in configs.values()]
    notes = tuple(_CHANNELS[count] for count in channels if count in _CHANNELS)
    weights = sorted(path for path in folder.glob("*/*.safetensors"))
    layers = dict(Counter(path.parent.name for path in weights if path.parent.name in components))

    def tensors() -> dict[str, Tensor]:
        return {
            f"{p.parent.name}/{p.stem}:{name}": t
            for p in weights
            for name, t in read_tensors(p).items()
        }

    return Recognised(
        "model folder", "diffusers", family, folder.name, layers, {}, facts, notes, tensors
    )


def _name(family: Family | None) -> str:
    return "" if family is None else family.name


def _part_prefixes() -> dict[str, str]:
    """What names in a single file begin with -> part. Of a text encoder, what stands before its
    layout's own name.
    """
    prefixes: dict[str, str] = {}
    for family in FAMILIES:
        for spec in family.parts:
            prefix = spec.file_prefix
            if isinstance(spec, TextEncoderSpec) and prefix:
                prefix = f"{prefix.rstrip('.').rpartition('.')[0]}."
            if prefix:
                prefixes[prefix] = spec.part
    return prefixes | _EMA


def _part_folder(folder: Path) -> Recognised | None:
    """One part of a diffusers folder by itself, by the class in its config."""
    config = _json(folder / "config.json")
    architectures = config.get("architectures")
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    known = {
        spec.class_name: "text encoder" if isinstance(spec, TextEncoderSpec) else spec.part
        for family in FAMILIES
        for spec in family.parts
    }
    kind = next((known[name] for name in names if isinstance(name, str) and name in known), None)
    if kind is None:
        return None
    weights = sorted(folder.glob("*.safetensors"))

    def tensors() -> dict[str, Tensor]:
        return {name: tensor for path in weights for name, tensor in read_tensors(path).items()}

    return Recognised(
        kind, "diffusers" if kind != "text encoder" else "transformers", tensors=tensors
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        table = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, OSError):
        return {}
    return table if isinstance(table, dict) else {}


def _context_width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return next(
        (shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0
    )


def _channel_notes(shape: tuple[int, ...]) -> tuple[str, ...]:
    return (_CHANNELS[shape[1]],) if len(shape) == 4 and shape[1] in _CHANNELS else ()

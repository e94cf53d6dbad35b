"""What `inspect` tells of a file."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate, tensors_of
from konomi.errors import FileFormatError
from konomi.families.foreign_names import part_of_folder
from konomi.formats import hypernetwork
from konomi.formats.family import family_by_metadata, odd_context_layer
from konomi.formats.kohya_metadata import text
from konomi.formats.readers import Reading, checkpoint_readings, readings
from konomi.formats.recognition import Recognised, recognise
from konomi.formats.source import PEFT_WEIGHTS, Parsed, Source, open_source
from konomi.formats.writer import content_of
from konomi.storage.hashing import sha256_file, short_hash
from konomi.storage.sniff import FileKind
from konomi.storage.tensor_file import is_finite, read_header

_MAX_NAMED = 50


@dataclass(frozen=True, slots=True)
class Health:
    """State of the numbers. Lists name at most 50 tensors."""

    checked: bool
    nonfinite: tuple[str, ...] = ()
    """Tensors with NaN or infinity."""
    zero: tuple[str, ...] = ()
    """Tensors that are all zero: in a LoRA, layers that did not train."""
    smallest_update: float | None = None
    """Frobenius norms of the low-rank updates, scale included."""
    median_update: float | None = None
    largest_update: float | None = None
    largest_layer: str = ""


@dataclass(frozen=True, slots=True)
class FileReport:
    """Everything `konomi inspect` shows. All values are plain, so `as_json` needs no conversion."""

    path: str
    kind: str
    """`lora`, `embedding`, `aesthetic embedding`, `hypernetwork`, `custom diffusion`,
    `checkpoint`, ..."""
    format: str
    family: str
    """Name of the family, or "" if the file does not tell."""
    name: str
    size_bytes: int
    num_tensors: int = 0
    num_parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    """Type -> number of tensors."""
    layers: dict[str, int] = field(default_factory=dict)
    """Part -> number of adapted layers, or of tensors in a checkpoint."""
    layer_kinds: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    """Rank -> number of layers."""
    alphas: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Token -> text encoder -> [vectors, width]."""
    metadata: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    health: Health = field(default_factory=lambda: Health(checked=False))
    unknown: tuple[str, ...] = ()
    """Tensors that have no place in what the file is, for which reason it is not loaded."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Name of a tensor, field or header entry that is not used where the file is loaded -> why."""
    problem: str = ""
    """Why the file cannot be used as it is; "" where it can."""
    notes: tuple[str, ...] = ()
    readers: tuple[Reading, ...] = ()
    """What ComfyUI, A1111 and diffusers make of it."""

    def as_json(self) -> dict[str, Any]:
        """Plain tables, lists, texts and numbers."""
        return asdict(self)


def adapter_report(source: Source, format_name: str, parsed: Parsed, *, check: bool) -> FileReport:
    """Report of a LoRA, a hypernetwork and their relatives."""
    adapter = parsed.adapter
    tensors = named_tensors(source, adapter)
    updates = list(adapter.layers.values())
    ranks = Counter(str(update.rank) for update in updates if update.rank is not None)
    alphas = Counter(text(update.alpha) for update in updates if update.alpha is not None)
    notes = _hash_notes(source) if check else []
    if parsed.unknown:
        notes.append(
            f"{len(parsed.unknown)} tensors have no place in a known layer; the file would not be "
            "loaded."
        )
    return FileReport(
        path=str(source.path),
        kind=content_of(adapter),
        format=format_name,
        family=adapter.family,
        name=adapter.name,
        size_bytes=_size(source),
        num_tensors=len(tensors),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtypes=_dtypes(tensors),
        layers=_layer_counts(adapter),
        layer_kinds=dict(Counter(_kind_name(update) for update in updates)),
        ranks=dict(ranks.most_common()),
        alphas=dict(alphas.most_common()),
        tokens=_token_shapes(adapter.embeddings),
        metadata=_facts(source, adapter),
        hashes=_hashes(source) if check else {},
        health=_health(tensors, adapter) if check else Health(checked=False),
        unknown=parsed.unknown,
        ignored=dict(parsed.ignored),
        problem=_problem_of(source, parsed, tensors) if check else _problem_of(source, parsed, {}),
        notes=(*notes, *parsed.notes),
        readers=readings(source, format_name, adapter),
    )


def refused_report(source: Source, format_name: str, problem: str, *, check: bool) -> FileReport:
    """Report of a file that its own format's reader refuses: everything that can be told without
    reading it as one.
    """
    tensors = _stored_tensors(source) if check else {}
    shapes = source.shapes or {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return FileReport(
        path=str(source.path),
        kind="unreadable",
        format=format_name,
        family=family_by_metadata(source.metadata),
        name=source.name,
        size_bytes=_size(source),
        num_tensors=len(shapes),
        num_parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
        dtypes=_declared_dtypes(source) or _dtypes(tensors),
        metadata=dict(source.metadata),
        hashes=_hashes(source) if check else {},
        health=_health(tensors, None) if check else Health(checked=False),
        problem=problem,
        notes=tuple(_hash_notes(source)) if check else (),
    )


def _stored_tensors(source: Source) -> dict[str, Tensor]:
    """What lies in the file, of a PEFT folder in its weights; nothing where that cannot be read
    either.
    """
    inside = next((path for name in PEFT_WEIGHTS if (path := source.path / name).is_file()), None)
    try:
        return source.tensors() if inside is None else open_source(inside, alone=True).tensors()
    except FileFormatError:
        return {}


def _problem_of(source: Source, parsed: Parsed, tensors: Mapping[str, Tensor]) -> str:
    """Why an adapter that was read is not loaded, in the words of `read_adapter`."""
    if parsed.unknown:
        return unknown_layers(source.path, parsed.unknown)
    if odd := odd_context_layer(parsed.adapter.layers):
        return other_width(source.path, odd)
    broken = next(
        (name for name, t in tensors.items() if name not in parsed.ignored and not is_finite(t)), ""
    )
    return not_finite(source.path, broken) if broken else ""


def unknown_layers(path: Path | str, names: Sequence[str]) -> str:
    """The sentence on names that have no place in the layers of any model."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{path}: {names[0]}{more}: konomi knows no such layer, so nothing was loaded."


def other_width(path: Path | str, key: str) -> str:
    """The sentence on a layer that cannot be of the same model as the others."""
    return f"{path}: {key} reads text states of another width than the layers before it."


def not_finite(path: Path | str, name: str) -> str:
    """The sentence on a tensor without numbers."""
    return f"{path}: {name} holds NaN or infinity; the file is broken. Use another save of it."


def other_report(source: Source, *, check: bool) -> FileReport:
    """Report of everything that is not an adapter konomi reads: checkpoints, folders, unknown
    tables.
    """
    found = recognise(source)
    tensors = found.tensors() if check else {}
    return FileReport(
        path=str(source.path),
        kind=found.kind,
        format=found.format,
        family=found.family,
        name=found.name or source.name,
        size_bytes=_size(source),
        num_tensors=len(source.shapes) or len(tensors),
        num_parameters=sum(torch.Size(shape).numel() for shape in source.shapes.values()),
        dtypes=_declared_dtypes(source) or _dtypes(tensors),
        layers=found.layers,
        tokens=found.tokens,
        metadata=dict(source.metadata) | found.facts,
        hashes=_hashes(source) if check else {},
        health=_health(tensors, None) if check else Health(checked=False),
        problem=f"{source.path}: {found.problem}" if found.problem else "",
        notes=(*found.notes, *(_hash_notes(source) if check else [])),
        readers=_model_readings(source, found),
    )


def _model_readings(source: Source, found: Recognised) -> tuple[Reading, ...]:
    if found.kind not in ("checkpoint", "model folder"):
        return ()
    names = part_of_folder()
    parts = {names.get(part, part): count for part, count in found.layers.items()}
    return checkpoint_readings(source, parts, found.family)


def named_tensors(source: Source, adapter: Adapter) -> dict[str, Tensor]:
    """Tensors by the file's own names where it is a flat table, otherwise by layer."""
    if source.kind is not FileKind.FOLDER and source.shapes:
        return source.tensors()
    found = {
        f"{key}.{name}": t
        for key, update in adapter.layers.items()
        for name, t in tensors_of(update).items()
    }
    for token, vectors in adapter.embeddings.items():
        found |= {f"{token}.{part}": tensor for part, tensor in vectors.items()}
    if adapter.hypernetwork is not None:
        found |= hypernetwork.tensors_of(adapter.hypernetwork)
    return found


def _layer_counts(adapter: Adapter) -> dict[str, int]:
    """Part -> number of layers; of a hypernetwork, width -> number of tensors."""
    if adapter.hypernetwork is not None:
        pairs = adapter.hypernetwork.pairs
        return {
            str(width): sum(len(half.tensors) for half in pair) for width, pair in pairs.items()
        }
    return dict(Counter(key.partition(".")[0] for key in adapter.layers))


def _facts(source: Source, adapter: Adapter) -> dict[str, str]:
    if adapter.hypernetwork is None:
        return dict(source.metadata) or dict(adapter.metadata)
    table = hypernetwork.table_of(adapter, adapter.name)
    return {
        name: text(value) for name, value in table.items() if value is not None
    } | adapter.metadata


def _health(tensors: Mapping[str, Tensor], adapter: Adapter | None) -> Health:
    nonfinite = tuple(name for name, tensor in tensors.items() if not is_finite(tensor))
    zero = tuple(
        name
        for name, tensor in tensors.items()
        if tensor.dim() and tensor.numel() and not tensor.any()
    )
    updates = adapter.layers if adapter else {}
    told = {key: update.norm() for key, update in updates.items()}
    norms = {key: norm for key, norm in told.items() if norm is not None and math.isfinite(norm)}
    if not norms:
        return Health(True, nonfinite[:_MAX_NAMED], zero[:_MAX_NAMED])
    largest = max(norms, key=lambda key: norms[key])
    middle = statistics.median(norms.values())
    extremes = (min(norms.values()), middle, norms[largest])
    return Health(True, nonfinite[:_MAX_NAMED], zero[:_MAX_NAMED], *extremes, largest)


def _hashes(source: Source) -> dict[str, str]:
    if source.path.is_dir():
        return {}
    full = sha256_file(source.path)
    found = {"sha256": full, "autov2": full[:10].upper(), "autov1": short_hash(source.path)}
    if source.kind is FileKind.SAFETENSORS:
        found["sshs_model_hash"] = sha256_file(
            source.path, start=read_header(source.path).data_start
        )
    return found


def _hash_notes(source: Source) -> list[str]:
    declared = source.metadata.get("sshs_model_hash", "")
    if not declared or source.kind is not FileKind.SAFETENSORS:
        return []
    actual = sha256_file(source.path, start=read_header(source.path).data_start)
    return (
        []
        if actual == declared
        else ["The tensors were changed after training: sshs_model_hash differs."]
    )


def _dtypes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return dict(
        Counter(
            str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()
        ).most_common()
    )


def _declared_dtypes(source: Source) -> dict[str, int]:
    if source.kind is not FileKind.SAFETENSORS:
        return {}
    return dict(
        Counter(info.dtype for info in read_header(source.path).tensors.values()).most_common()
    )


def _token_shapes(
    embeddings: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, dict[str, list[int]]]:
    return {
        token: {part: list(t.shape) for part, t in vectors.items()}
        for token, vectors in embeddings.items()
    }


def _kind_name(update: LayerUpdate) -> str:
    return update.about.name + ("" if update.magnitude is None else "+dora")


def _size(source: Source) -> int:
    if source.path.is_dir():
        return sum(path.stat().st_size for path in source.path.rglob("*") if path.is_file())
    return source.path.stat().st_size

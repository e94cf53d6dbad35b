"""Hypernetwork files: web UIs' .pt, and the same content as safetensors.

.pt: {320: (k, v), 768: (k, v), ...}, whole numbers as keys, each half a table `linear.{i}.weight`,
`linear.{i}.bias`; beside them `layer_structure`, `activation_func` and so on. Everything in it is
a tensor or plain, so that it loads without trusting it. safetensors: tensors
`{width}.k.linear.{i}.weight`; the rest as JSON in the metadata entry `hypernetwork`. What a file
leaves out is read as A1111 does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter, Hypernetwork, Perceptron
from konomi.adapters.hypernetwork import ACTIVATIONS, HALVES, build_network
from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.families.recognition import families_of_contexts
from konomi.formats.family import family_of
from konomi.formats.kohya import cast_floats
from konomi.formats.kohya_metadata import base_model_version, text
from konomi.formats.source import Parsed, Source, fault
from konomi.formats.writer import WriteOptions, Writer
from konomi.storage.pickles import write_pickle
from konomi.storage.sniff import FileKind
from konomi.storage.tensor_file import check_finite, write_tensors

NAME = "webui"
_ENTRY = "hypernetwork"
_TENSOR = re.compile(r"(\d{1,6})\.([kv])\.(linear\.\d{1,3}\.(?:weight|bias))")
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}
"""Of the first files, which had two layers and no activation."""
_WIDEST = 65536
_LARGEST_MULTIPLE = 64
_FACTS = ("step", "weight_initialization", "sd_checkpoint", "sd_checkpoint_name", "optional_info")
"""What a file says beyond what the networks compute."""
_COMPUTED = (
    "name", "layer_structure", "activation_func", "is_layer_norm", "activate_output", "use_dropout",
    "dropout_structure", "last_layer_dropout", "metadata",
)  # fmt: skip

Halves = dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]


def recognise(source: Source) -> bool:
    """Whether widths are keys, or tensors are named by width and half."""
    if source.kind is FileKind.SAFETENSORS:
        return any(_TENSOR.fullmatch(name) for name in source.shapes) or _ENTRY in source.metadata
    value = source.value
    return isinstance(value, dict) and any(
        type(key) is int and _is_pair(item) for key, item in value.items()
    )


def parse(source: Source) -> Parsed:
    """Read either spelling.

    Raises FileFormatError naming the tensor that is missing, misshapen or none of the structure's,
    an activation that konomi does not know, and what else in the table makes no sense.
    """
    if source.kind is FileKind.SAFETENSORS:
        halves, table, unknown = _from_tensors(source)
        metadata = {
            name: value for name, value in source.metadata.items() if name not in (_ENTRY, "format")
        }
    else:
        halves, table, unknown = _from_pickle(source)
        metadata = _texts(table.get("metadata"))
    hypernetwork = _hypernetwork(source.path, table, halves)
    name = str(table.get("name") or "") or source.name
    adapter = Adapter(hypernetwork=hypernetwork, metadata=metadata, name=name)
    adapter = replace(adapter, family=family_of(adapter))
    return Parsed(
        adapter, tuple(unknown), used=frozenset(entry for entry in source.names if _is_read(entry))
    )


def write(adapter: Adapter, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write .pt, or safetensors where the path ends so. `dtype` None keeps every tensor's.

    Raises FileFormatError for NaN, RunError for the disk's refusals.
    """
    assert adapter.hypernetwork is not None
    tensors = cast_floats(tensors_of(adapter.hypernetwork), dtype)
    table, metadata = table_of(adapter, path.stem), _own_metadata(adapter)
    if path.suffix.lower() == ".safetensors":
        write_tensors(path, tensors, {**metadata, _ENTRY: json.dumps(table, ensure_ascii=False)})
        return
    check_finite(tensors, str(path))
    pairs: dict[int | str, Any] = {
        width: tuple(
            {
                name: tensors[f"{width}.{half}.{name}"].contiguous().clone()
                for name in perceptron.tensors
            }
            for half, perceptron in zip(HALVES, pair)
        )
        for width, pair in adapter.hypernetwork.pairs.items()
    }
    write_pickle(path, pairs | table | ({"metadata": metadata} if metadata else {}))


def tensors_of(hypernetwork: Hypernetwork) -> dict[str, Tensor]:
    """`{width}.{k or v}.linear.{i}.weight` -> tensor."""
    return {
        f"{width}.{half}.{name}": tensor
        for width, pair in hypernetwork.pairs.items()
        for half, perceptron in zip(HALVES, pair)
        for name, tensor in perceptron.tensors.items()
    }


def table_of(adapter: Adapter, title: str) -> dict[str, Any]:
    """Everything but tensors, under web UIs' names and in their types."""
    spec, metadata = adapter.hypernetwork, adapter.metadata
    assert spec is not None
    dropout = list(spec.dropout) or [0.0] * len(spec.structure)
    defaults = {
        "step": metadata.get("ss_steps", "0"),
        "weight_initialization": "Normal",
        "sd_checkpoint": metadata.get("ss_sd_model_hash"),
        "sd_checkpoint_name": metadata.get("ss_sd_model_name"),
        "optional_info": metadata.get("ss_training_comment"),
    }
    facts: dict[str, Any] = defaults | spec.facts
    facts["step"] = int(facts["step"]) if str(facts["step"]).isdigit() else 0
    return facts | {
        "name": adapter.name or title,
        "layer_structure": [_short(multiple) for multiple in spec.structure],
        # A1111 writes None for "linear" at times, which other programs refuse; absent
        # activate_output is read differently by different programs. So both are always written.
        "activation_func": spec.activation,
        "activate_output": spec.activate_output,
        "is_layer_norm": spec.layer_norm,
        "use_dropout": any(dropout),
        "dropout_structure": [_short(rate) for rate in dropout],
        "last_layer_dropout": len(dropout) > 2 and dropout[-2] > 0,
    }


def _from_tensors(source: Source) -> tuple[Halves, dict[str, Any], list[str]]:
    halves: Halves = {}
    unknown = []
    for name, tensor in source.tensors().items():
        if match := _TENSOR.fullmatch(name):
            halves.setdefault(int(match[1]), ({}, {}))[HALVES.index(match[2])][match[3]] = tensor
        else:
            unknown.append(name)
    try:
        table = parse_json(source.metadata.get(_ENTRY, "{}"))
    except ValueError as error:
        raise fault(source.path, f"metadata {_ENTRY}", f"is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise fault(source.path, f"metadata {_ENTRY}", "is not a table")
    return halves, table, unknown


def _from_pickle(source: Source) -> tuple[Halves, dict[str, Any], list[str]]:
    halves: Halves = {}
    table: dict[str, Any] = {}
    unknown = []
    for key, item in source.value.items():
        if type(key) is int:
            if not _is_pair(item):
                raise fault(source.path, str(key), "is not a pair of networks for keys and values")
            k, v = (
                _renamed(source.path, f"{key}.{half}", part) for half, part in zip(HALVES, item)
            )
            halves[key] = (k, v)
        elif isinstance(item, Tensor):
            unknown.append(str(key))
        else:
            table[str(key)] = item
    return halves, table, unknown


def _is_read(entry: str) -> bool:
    """Whether an entry of the file is a network's, or one of the facts that are kept."""
    first = entry.partition(".")[0]
    return first.isdigit() or first in (*_FACTS, *_COMPUTED)


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, tuple | list)
        and len(item) == 2
        and all(isinstance(half, dict) for half in item)
    )


def _renamed(path: Path, where: str, half: Mapping[Any, Any]) -> dict[str, Tensor]:
    """A half's tensors under today's names."""
    tensors = {}
    for key, tensor in half.items():
        if not isinstance(tensor, Tensor):
            raise fault(path, f"{where}.{str(key)[:60]}", "is not a tensor")
        layer, _, kind = str(key).rpartition(".")
        tensors[f"{_OLD_NAMES.get(layer, layer)}.{kind}"] = tensor.detach()
    return tensors


def _hypernetwork(path: Path, table: Mapping[str, Any], halves: Halves) -> Hypernetwork:
    structure = _numbers(path, table, "layer_structure", (1.0, 2.0, 1.0))
    if not 2 <= len(structure) <= 64 or structure[0] != 1 or structure[-1] != 1:
        raise fault(path, f"layer_structure {_listed(structure)}", "does not begin and end with 1")
    if not all(0 < multiple <= _LARGEST_MULTIPLE for multiple in structure):
        raise fault(
            path, f"layer_structure {_listed(structure)}", "is not of numbers above 0 and up to 64"
        )
    activation = table.get("activation_func") or "linear"
    if not isinstance(activation, str) or (
        activation.lower() not in ACTIVATIONS and activation != "linear"
    ):
        known = ", ".join(["linear", *ACTIVATIONS])
        raise fault(
            path, f"activation_func {str(activation)[:40]!r}", f"is none that konomi knows: {known}"
        )
    spec = Hypernetwork(
        pairs={},
        structure=structure,
        activation=activation.lower(),
        activate_output=_switch(path, table, "activate_output", True),
        layer_norm=_switch(path, table, "is_layer_norm", False),
        dropout=_dropout(path, table, len(structure)),
        facts=_facts(table),
    )
    if not halves:
        raise FileFormatError(f"{path}: holds no network.")
    pairs = {}
    for width, (k, v) in sorted(halves.items()):
        if not 0 < width <= _WIDEST:
            raise fault(path, str(width), "is not a width of attention layers")
        pairs[width] = (
            _checked(path, f"{width}.k", k, width, spec),
            _checked(path, f"{width}.v", v, width, spec),
        )
    return replace(spec, pairs=pairs)


def _checked(
    path: Path, where: str, tensors: Mapping[str, Tensor], width: int, spec: Hypernetwork
) -> Perceptron:
    """Names and shapes against those of the structure, which is built without memory for it."""
    with torch.device("meta"):
        expected = {
            f"linear.{name}": t.shape for name, t in build_network(width, spec).state_dict().items()
        }
    norm = " and layer norm" if spec.layer_norm else ""
    said = (
        f"a network {_listed(spec.structure)} of width {width} with activation "
        f"{spec.activation}{norm}"
    )
    for name, shape in expected.items():
        if name not in tensors:
            raise fault(path, f"{where}.{name}", f"is missing, which {said} has")
        if tensors[name].shape != shape:
            raise fault(
                path,
                f"{where}.{name}",
                f"is {list(tensors[name].shape)}; {said} has {list(shape)} there",
            )
        if not tensors[name].is_floating_point():
            raise fault(
                path,
                f"{where}.{name}",
                f"has type {tensors[name].dtype}; it must be a floating-point type",
            )
    for name in tensors:
        if name not in expected:
            raise fault(path, f"{where}.{name}", f"has no place in {said}")
    return Perceptron({name: tensors[name] for name in expected})


def _dropout(path: Path, table: Mapping[str, Any], count: int) -> tuple[float, ...]:
    """Rates by layer; () where there are none. Without `dropout_structure`, as A1111 makes it of
    the two switches.
    """
    last = 0.3 if _switch(path, table, "last_layer_dropout", False) else 0.0
    rates = (0.0, *[0.3] * (count - 3), last, 0.0) if count > 2 else (0.0, 0.0)
    if not _switch(path, table, "use_dropout", False):
        rates = (0.0,) * count
    rates = _numbers(path, table, "dropout_structure", rates)
    if len(rates) != count or not all(0 <= rate < 1 for rate in rates):
        raise fault(
            path,
            f"dropout_structure {_listed(rates)}",
            f"is not of {count} numbers from 0 and below 1",
        )
    return rates if any(rates) else ()


def _numbers(
    path: Path, table: Mapping[str, Any], name: str, default: tuple[float, ...]
) -> tuple[float, ...]:
    value = table.get(name)
    if value is None:
        return default
    if not isinstance(value, list | tuple) or not all(type(item) in (int, float) for item in value):
        raise fault(path, f"{name} {str(value)[:60]}", "is not a list of numbers")
    if any(abs(item) > 1e6 or item != item for item in value):
        raise fault(path, f"{name} {str(value)[:60]}", "holds numbers out of all bounds")
    return tuple(float(item) for item in value)


def _switch(path: Path, table: Mapping[str, Any], name: str, default: bool) -> bool:
    value = table.get(name)
    if value is None:
        return default
    if not isinstance(value, bool | int):
        raise fault(path, f"{name} {str(value)[:60]!r}", "is neither true nor false")
    return bool(value)


def _facts(table: Mapping[str, Any]) -> dict[str, str]:
    known = {name: item for name, item in table.items() if name not in _COMPUTED}
    return {name: text(item) for name, item in known.items() if isinstance(item, str | int | float)}


def _texts(table: object) -> dict[str, str]:
    entries = table.items() if isinstance(table, dict) else ()
    return {key: item for key, item in entries if isinstance(key, str) and isinstance(item, str)}


def _own_metadata(adapter: Adapter) -> dict[str, str]:
    """What the run says of itself, without what is about LoRA alone."""
    kept = {
        name: value
        for name, value in adapter.metadata.items()
        if not name.startswith(("ss_network_", "sshs_"))
    }
    if "modelspec.architecture" in kept:
        kept["modelspec.architecture"] = (
            kept["modelspec.architecture"].partition("/")[0] + "/hypernetwork"
        )
    told = (
        families_of_contexts(adapter.hypernetwork.pairs) if adapter.hypernetwork is not None else ()
    )
    if adapter.family and adapter.family not in [family.name for family in told]:
        kept.setdefault("ss_base_model_version", base_model_version(adapter.family, "epsilon"))
    return kept


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _write(adapter: Adapter, path: Path, options: WriteOptions) -> None:
    write(adapter, path, dtype=options.dtype)


WRITERS = (Writer("hypernetwork", ("webui",), ".pt", _write, (".safetensors",)),)

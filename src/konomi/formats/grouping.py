"""From a file's flat table to layers: tensors by layer, each layer under its canonical key. One
loop for every format that names a layer and its parts in one name (kohya's, ComfyUI's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from konomi.adapters.kinds import LayerUpdate
from konomi.formats.layers import LayerError, layer_from_parts
from konomi.formats.source import fault


@dataclass(slots=True)
class Grouped:
    """The tensors of a file by layer, under the file's own names of layers."""

    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Layer -> part in kohya's words -> tensor."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Layer -> the tensors' names."""
    unknown: list[str] = field(default_factory=list)
    """Tensors that are no part of a layer."""


def group(
    path: Path, tensors: Mapping[str, Tensor], split: Callable[[str], tuple[str, str] | None]
) -> Grouped:
    """Tensors by layer; `split` cuts a name into (layer, part) or says None.

    Raises FileFormatError for a part that is there twice, under two spellings.
    """
    found = Grouped()
    for name, tensor in tensors.items():
        halves = split(name)
        if halves is None:
            found.unknown.append(name)
            continue
        layer, part = halves
        if part in found.parts.setdefault(layer, {}):
            raise fault(path, name, "stands for what another tensor of this layer is, too")
        found.parts[layer][part] = tensor
        found.names.setdefault(layer, []).append(name)
    return found


def assemble(
    path: Path, grouped: Grouped, key_of: Callable[[str], str | None]
) -> tuple[dict[str, LayerUpdate], list[str]]:
    """Canonical key -> update, and the names of all tensors that have no place; `key_of` is None
    for unknown layers.

    Raises FileFormatError naming the layer that is there twice, or whose tensors do not fit
    together.
    """
    layers: dict[str, LayerUpdate] = {}
    unknown = list(grouped.unknown)
    for layer, parts in grouped.parts.items():
        key = key_of(layer)
        if key is None:
            unknown += grouped.names[layer]
            continue
        if key in layers:
            raise fault(path, layer, f"names the same layer as another entry ({key})")
        try:
            layers[key] = layer_from_parts(parts)
        except LayerError as error:
            raise fault(path, f"{layer}.{error.part}".rstrip("."), error.what) from error
    return layers, unknown

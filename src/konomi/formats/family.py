"""Which family of models an adapter belongs to: by widths, by names, by what the file says, in
this order.
"""

from __future__ import annotations

from collections.abc import Mapping

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate
from konomi.families.family import Family
from konomi.families.recognition import (
    families_of_contexts,
    family_of_layers,
    family_of_metadata,
    family_of_vectors,
    reads_text,
)


def family_by_layers(layers: Mapping[str, LayerUpdate]) -> str:
    """From the widths of what layers read, and from layers that one family alone has; "" if
    nothing tells.
    """
    return _name(family_of_layers({key: update.input_width for key, update in layers.items()}))


def family_by_metadata(metadata: Mapping[str, str]) -> str:
    """From what a file says of itself; "" if it does not."""
    return _name(family_of_metadata(metadata))


def family_of(adapter: Adapter) -> str:
    """The family by layers, then by metadata, then by learned words or networks; "" if nothing
    tells.
    """
    found = family_by_layers(adapter.layers) or family_by_metadata(adapter.metadata)
    if found:
        return found
    for vectors in adapter.embeddings.values():
        return _name(
            family_of_vectors({part: tensor.shape[-1] for part, tensor in vectors.items()})
        )
    if adapter.hypernetwork is not None:
        fitting = families_of_contexts(adapter.hypernetwork.pairs)
        return fitting[0].name if len(fitting) == 1 else ""
    return ""


def odd_context_layer(layers: Mapping[str, LayerUpdate]) -> str:
    """The first layer that reads text states of another width than the first such layer; "" if all
    agree.
    """
    first = None
    for key, update in layers.items():
        if reads_text(key) and (width := update.input_width) is not None:
            first = width if first is None else first
            if width != first:
                return key
    return ""


def _name(family: Family | None) -> str:
    return "" if family is None else family.name

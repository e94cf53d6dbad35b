"""The tensors of one layer, as kohya's and LyCORIS' files name them, to an update of whichever
kind they make.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from konomi.adapters.kinds import KINDS, Kind, LayerUpdate
from konomi.adapters.kinds.parts import LayerError

__all__ = [
    "BEGINNINGS",
    "KNOWN_PARTS",
    "LayerError",
    "kind_of_parts",
    "layer_from_parts",
    "part_of",
    "split_name",
]

_RESHAPE = "reshape_weight"
_PARTS = frozenset(name for kind in KINDS for name in kind.about.parts)
_NUM_AXES = {
    name: tuple(sorted({axis for kind in KINDS for axis in kind.about.parts.get(name, ())}))
    for name in _PARTS
}
"""Part -> how many axes it may have in any kind; () for any number."""
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SPELLINGS = {other: name for kind in KINDS for other, name in kind.about.spellings.items()}
KNOWN_PARTS = _PARTS | {_RESHAPE}
_NAMES = [set(kind.about.parts) for kind in KINDS]
_OWN = {
    kind: names - set().union(*(others for others in _NAMES if others is not names))
    for kind, names in zip(KINDS, _NAMES, strict=True)
}
"""Parts that no other kind has: one of them is enough to know what a layer is meant to be."""
BEGINNINGS = tuple(
    f"{min(words)}_"
    for names in _OWN.values()
    if len(names) > 1 and len(words := {name.partition("_")[0] for name in names}) == 1
)
"""What all parts of a kind begin with (`lora_`, ...), for kinds whose parts do."""


def part_of(name: str) -> str:
    """A part of a layer under kohya's name for it; "" for what is none that konomi knows."""
    found = _SPELLINGS.get(name, name)
    return found if found in KNOWN_PARTS else ""


def split_name(name: str) -> tuple[str, str] | None:
    """A dotted tensor name as (layer, part in kohya's words); None if it ends in no part of an
    update.
    """
    position = len(name)
    for _ in range(3):
        position = name.rfind(".", 0, position)
        if position <= 0:
            return None
        # IA3's bare `weight` would be found in every name; its `on_input` tells.
        if (part := part_of(name[position + 1 :])) and part != "weight":
            return name[:position], part
    return None


def kind_of_parts(names: Collection[str], axes: Mapping[str, int] | None = None) -> Kind | None:
    """The kind whose update a layer's parts make; None where none is complete.

    `axes`: part -> its number of axes, which alone tells OFT from BOFT.
    """
    complete = [
        kind for kind in KINDS if any(wanted <= set(names) for wanted in kind.about.complete)
    ]
    fitting = (kind for kind in complete if _fits(kind, axes or {}))
    return next(fitting, next(iter(complete), None))


def _fits(kind: Kind, axes: Mapping[str, int]) -> bool:
    return all(
        not possible or axes.get(name) in (None, *possible)
        for name, possible in kind.about.parts.items()
    )


def layer_from_parts(parts: Mapping[str, Tensor]) -> LayerUpdate:
    """Assemble one layer. Raises LayerError for missing halves, rank 0, widths that differ, or
    mixed kinds.
    """
    names = frozenset(parts)
    if _RESHAPE in names:
        raise LayerError(
            _RESHAPE, "gives the layer another shape (as for FLUX tools), which konomi does not do"
        )
    _check_shapes(parts)
    kind = next((kind for kind in KINDS if names & _OWN[kind]), None) or kind_of_parts(
        names, {name: tensor.dim() for name, tensor in parts.items()}
    )
    if kind is None:
        raise LayerError(min(names, default=""), "has none of the tensors it belongs to")
    for name in sorted(names - kind.about.parts.keys()):
        raise LayerError(
            name, "does not belong to a layer of this kind; konomi cannot combine the two"
        )
    return kind.from_parts(parts)


def _check_shapes(parts: Mapping[str, Tensor]) -> None:
    """Every tensor by itself: a real number type, and as many axes as its part may have."""
    for name, tensor in parts.items():
        whole = name == "alpha" and tensor.dtype in _INTEGERS
        if name != "on_input" and not tensor.is_floating_point() and not whole:
            raise LayerError(
                name,
                f"has type {str(tensor.dtype).removeprefix('torch.')}; it must be a floating-point "
                "type",
            )
        if not (possible := _NUM_AXES.get(name)):
            continue
        if tensor.dim() not in possible:
            raise LayerError(name, f"has shape {list(tensor.shape)}; {possible} axes are possible")
        if tensor.numel() == 0:
            what = (
                "has rank 0"
                if 0 in tensor.shape[:2]
                else f"has shape {list(tensor.shape)}, which is empty"
            )
            raise LayerError(name, what)

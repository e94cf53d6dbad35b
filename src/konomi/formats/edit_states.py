"""The two text states of an edited picture (Imagic), beside its LoRA in kohya's file: other
programs read the LoRA and pass over these tensors.

Shapes: T text positions, D text width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from konomi.adapters.adapter import Edit
from konomi.diffusion.conditioning import Conditioning
from konomi.formats.source import fault

PREFIX = "imagic."
_PROMPT, _SIZE = "konomi.edit.prompt", "konomi.edit.size"
_STATES = ("target.states", "found.states")
_POOLED = ("target.pooled", "found.pooled")


def edit_tensors(edit: Edit) -> dict[str, Tensor]:
    """`imagic.target.states` [1, T, D] and the others, float32."""
    found = {
        f"{PREFIX}{name}.{field}": getattr(state, field)
        for name, state in (("target", edit.target), ("found", edit.found))
        for field in ("states", "pooled")
    }
    return {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in found.items()
        if tensor is not None
    }


def edit_metadata(edit: Edit) -> dict[str, str]:
    """The prompt, and the size as `WxH`."""
    width, height = edit.size
    return {_PROMPT: edit.prompt, _SIZE: f"{width}x{height}"}


def read_edit(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Edit:
    """Raises FileFormatError naming the state that is missing, or of another shape than its
    fellow."""
    own = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    pooled = any(name in own for name in _POOLED)
    for names, axes, form in ((_STATES, 3, "[1, T, D]"), (_POOLED, 2, "[1, P]")):
        if names is _POOLED and not pooled:
            continue
        for name in names:
            if name not in own:
                raise fault(path, PREFIX + name, "is missing; an edit has both of its states")
            tensor, fellow = own[name], own.get(names[0], own[name])
            right = tensor.is_floating_point() and tensor.dim() == axes and len(tensor) == 1
            if not right or tensor.shape != fellow.shape:
                shown = list(tensor.shape)
                raise fault(path, PREFIX + name, f"has shape {shown}; both states are {form} alike")
    target, found = (
        Conditioning(
            own[f"{name}.states"].float(), own[f"{name}.pooled"].float() if pooled else None
        )
        for name in ("target", "found")
    )
    return Edit(metadata.get(_PROMPT, ""), target, found, _size(metadata.get(_SIZE, "")))


def used_names(names: Mapping[str, object]) -> frozenset[str]:
    """Of tensors, those that are read here."""
    known = {PREFIX + name for name in (*_STATES, *_POOLED)}
    return frozenset(name for name in names if name in known)


def _size(written: str) -> tuple[int, int]:
    width, _, height = written.partition("x")
    return (int(width), int(height)) if width.isdigit() and height.isdigit() else (0, 0)

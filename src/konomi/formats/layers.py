"""The tensors of one layer, as kohya's and LyCORIS' files name them, to a layer update and back.

Shapes: O output, I input, R rank, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from konomi.adapters.adapter import (
    Difference,
    Hadamard,
    Kronecker,
    LayerUpdate,
    LowRank,
    Replacement,
    Rescale,
    axis_of_magnitude,
)
from konomi.errors import FileFormatError

_BIAS = "lora_up.bias"
"""PEFT's `lora_B.bias`: part of the update, so its scale counts; `diff_b` stands for itself."""
_LOW_RANK = {"lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff_b", _BIAS}
_HADAMARD = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"} | {
    "alpha", "dora_scale", "diff_b",
}  # fmt: skip
_KRONECKER = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"} | {
    "alpha", "dora_scale", "diff_b",
}  # fmt: skip
_DIFFERENCE = {"diff", "diff_b", "w_norm", "b_norm"}
_RESCALE = {"weight", "on_input"}
_WHOLE = {"set_weight"}
_RESHAPE = "reshape_weight"
_AXES = (
    ((2, 4), ("lora_down.weight", "lora_up.weight", "dora_scale", "lokr_w1", "lokr_w2")),
    ((2,), ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    ((4,), ("lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2")),
    ((1,), (_BIAS,)),
    ((1, 2, 3, 4), ("diff", "diff_b", "w_norm", "b_norm", "weight", "set_weight")),
)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NUM_AXES: dict[str, tuple[int, ...]] = {name: axes for axes, names in _AXES for name in names}
KNOWN_PARTS = _LOW_RANK | _HADAMARD | _KRONECKER | _DIFFERENCE | _RESCALE | _WHOLE | {_RESHAPE}
_SPELLINGS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_B.bias": _BIAS,
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
}
"""How other programs call the same parts."""


def part_of(name: str) -> str:
    """A part of a layer under kohya's name for it; "" for what is none that konomi knows."""
    found = _SPELLINGS.get(name, name)
    return found if found in KNOWN_PARTS else ""


def split_name(name: str) -> tuple[str, str] | None:
    """A dotted tensor name as (layer, part in kohya's words); None if it ends in no part of an update."""
    position = len(name)
    for _ in range(3):
        position = name.rfind(".", 0, position)
        if position <= 0:
            return None
        # IA3's bare `weight` would be found in every name; its `on_input` tells.
        if (part := part_of(name[position + 1 :])) and part != "weight":
            return name[:position], part
    return None


class LayerError(Exception):
    """A layer's tensors do not fit together: (part or "" for the layer, what is wrong)."""

    def __init__(self, part: str, what: str) -> None:
        super().__init__(part, what)
        self.part = part
        self.what = what


def layer_from_parts(parts: Mapping[str, Tensor]) -> LayerUpdate:
    """Assemble one layer. Raises LayerError for missing halves, rank 0, widths that differ, or mixed kinds."""
    names = set(parts)
    if _RESHAPE in names:
        raise LayerError(_RESHAPE, "gives the layer another shape (as for FLUX tools), which konomi does not do")
    _check_shapes(parts)
    if any(name.startswith("lora_") for name in names):
        return _low_rank(parts, _only(names, _LOW_RANK))
    if any(name.startswith("hada_") for name in names):
        return _hadamard(parts, _only(names, _HADAMARD))
    if any(name.startswith("lokr_") for name in names):
        return _kronecker(parts, _only(names, _KRONECKER))
    if names & _DIFFERENCE:
        _only(names, _DIFFERENCE)
        if {"diff", "w_norm"} <= names or {"diff_b", "b_norm"} <= names:
            raise LayerError("diff", "is given twice, as difference and as norm")
        weight = parts["diff"] if "diff" in parts else parts.get("w_norm")
        bias = parts["diff_b"] if "diff_b" in parts else parts.get("b_norm")
        return Difference(weight, bias)
    if "weight" in names:
        _only(names, _RESCALE)
        if "on_input" not in names:
            raise LayerError("weight", "has no on_input beside it, so its axis is unknown")
        if parts["on_input"].numel() != 1:
            raise LayerError("on_input", f"has shape {list(parts['on_input'].shape)}; one truth value is wanted")
        return Rescale(parts["weight"], bool(parts["on_input"].item()))
    if names & _WHOLE:
        _only(names, _WHOLE)
        return Replacement(parts["set_weight"])
    raise LayerError(min(names, default=""), "stands alone: the tensors it belongs to are missing")


def parts_from_layer(update: LayerUpdate, *, norm: bool) -> dict[str, Tensor]:
    """The way back. `norm`: the module is a normalisation, whose differences have their own names."""
    found: dict[str, Tensor | None]
    match update:
        case LowRank():
            found = {
                "lora_down.weight": update.down,
                "lora_up.weight": update.up,
                "lora_mid.weight": update.mid,
                "alpha": _scalar(update.alpha, update.down),
                "dora_scale": update.magnitude,
                "diff_b": update.bias,
            }
        case Hadamard():
            found = {f"hada_{name}": getattr(update, name) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
            found |= {"alpha": _scalar(update.alpha, update.w1_a), "dora_scale": update.magnitude}
            found["diff_b"] = update.bias
        case Kronecker():
            found = {
                f"lokr_{name}": getattr(update, name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
            }
            like = next(tensor for tensor in found.values() if tensor is not None)
            found["alpha"] = None if update.alpha is None else _scalar(update.alpha, like)
            found |= {"dora_scale": update.magnitude, "diff_b": update.bias}
        case Rescale():
            found = {"weight": update.weight, "on_input": torch.tensor(update.on_input)}
        case Difference():
            found = {"w_norm" if norm else "diff": update.weight, "b_norm" if norm else "diff_b": update.bias}
        case Replacement():
            raise FileFormatError("a layer is given as a whole weight, which this format does not hold.")
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def folded(layer: LowRank, dtype: torch.dtype | None) -> LowRank:
    """The same update with alpha = rank. A half that would lose precision in its type is kept in float32."""
    rank = layer.down.shape[0]
    wanted = dtype or layer.up.dtype
    exact = layer.up.double() * (layer.alpha / rank)
    up, down = exact.to(wanted), layer.down.to(dtype or layer.down.dtype)
    if layer.alpha != rank and wanted == torch.float16:
        # Small scales push float16 into its subnormal range, where a few bits are left of the eleven.
        error = (up.double() - exact).abs().max()
        if not float(error) <= float(exact.abs().max()) * 2**-11:
            up, down = exact.float(), down.float()
    magnitude = layer.magnitude
    if magnitude is not None and dtype is not None:
        magnitude = magnitude.to(dtype)
    bias = layer.bias if layer.bias is None or dtype is None else layer.bias.to(dtype)
    return replace(layer, down=down, up=up, alpha=float(rank), magnitude=magnitude, bias=bias)


def per_output(update: LayerUpdate) -> bool:
    """Whether it has DoRA magnitudes per output, which A1111 takes for magnitudes per input."""
    magnitude = getattr(update, "magnitude", None)
    return magnitude is not None and axis_of_magnitude(magnitude) == "output"


def rank_of(update: LayerUpdate) -> int | None:
    """Inner dimension of the factors; None where there is none."""
    match update:
        case LowRank():
            return update.down.shape[0]
        case Hadamard():
            return update.w1_b.shape[0]
        case Kronecker():
            for factor in (update.w1_b, update.w2_b):
                if factor is not None:
                    return factor.shape[0]
    return None


def tensors_of(update: LayerUpdate) -> dict[str, Tensor]:
    """Field name -> tensor, for walking over any kind of update."""
    fields = ((name, getattr(update, name)) for name in update.__dataclass_fields__)
    return {name: value for name, value in fields if isinstance(value, Tensor)}


def _only(names: set[str], allowed: set[str]) -> set[str]:
    for name in sorted(names - allowed):
        raise LayerError(name, "does not belong to a layer of this kind; konomi cannot combine the two")
    return names


def _check_shapes(parts: Mapping[str, Tensor]) -> None:
    """Every tensor by itself: a real number type, and as many axes as its part may have."""
    for name, tensor in parts.items():
        whole = name == "alpha" and tensor.dtype in _INTEGERS
        if name != "on_input" and not tensor.is_floating_point() and not whole:
            raise LayerError(name, f"has type {str(tensor.dtype).removeprefix('torch.')}; a floating type is wanted")
        if name in _NUM_AXES and tensor.dim() not in _NUM_AXES[name]:
            raise LayerError(name, f"has shape {list(tensor.shape)}; {_NUM_AXES[name]} axes are possible")
        if name in _NUM_AXES and tensor.numel() == 0:
            what = "has rank 0" if 0 in tensor.shape[:2] else f"has shape {list(tensor.shape)}, which is empty"
            raise LayerError(name, what)


def _low_rank(parts: Mapping[str, Tensor], names: set[str]) -> LowRank:
    for half, other in (("lora_down.weight", "lora_up.weight"), ("lora_up.weight", "lora_down.weight")):
        if other not in names:
            raise LayerError(half if half in names else "", f"has no {other.split('.')[0]} beside it")
    down, up, mid = parts["lora_down.weight"], parts["lora_up.weight"], parts.get("lora_mid.weight")
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise LayerError("lora_up.weight", f"has rank {up.shape[1]}; its lora_down has rank {rank}")
    if mid is not None and (mid.dim() != 4 or tuple(mid.shape[:2]) != (rank, rank)):
        raise LayerError("lora_mid.weight", f"has shape {list(mid.shape)}; [{rank}, {rank}, K, K] is wanted")
    if up.dim() == 4 and tuple(up.shape[2:]) != (1, 1):
        raise LayerError("lora_up.weight", f"has a kernel of {list(up.shape[2:])}; 1 x 1 is wanted")
    magnitude = parts.get("dora_scale")
    _check_magnitude(magnitude, up.shape[0], down.shape[1])
    alpha = _alpha(parts, rank)
    bias = _bias(parts, up.shape[0])
    if _BIAS in parts:
        if bias is not None:
            raise LayerError("diff_b", "stands beside a bias of lora_up; konomi cannot tell which is meant")
        bias = _bias(parts, up.shape[0], _BIAS)
        bias = None if bias is None else bias * (alpha / rank)
    return LowRank(down, up, alpha, mid, magnitude, bias)


def _hadamard(parts: Mapping[str, Tensor], names: set[str]) -> Hadamard:
    for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
        if name not in names:
            raise LayerError("", f"has no {name}")
    w1_a, w1_b, w2_a, w2_b = (parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    rank = w1_b.shape[0]
    t1, t2 = parts.get("hada_t1"), parts.get("hada_t2")
    if (t1 is None) != (t2 is None):
        raise LayerError("hada_t1" if t2 is None else "hada_t2", "has no counterpart")
    if t1 is not None:
        _check_core(parts, "hada_t1", "hada_w1_a", "hada_w1_b")
        _check_core(parts, "hada_t2", "hada_w2_a", "hada_w2_b")
    for letter, a, b in (("1", w1_a, w1_b), ("2", w2_a, w2_b)):
        # With a Tucker core the first factor is [R, O]; without, [O, R].
        inner = a.shape[1] if t1 is None else a.shape[0]
        if inner != b.shape[0]:
            raise LayerError(f"hada_w{letter}_a", f"has rank {inner}; hada_w{letter}_b has {b.shape[0]}")
    if w1_a.shape != w2_a.shape or w1_b.shape != w2_b.shape:
        raise LayerError("hada_w2_a", "and hada_w1_a belong to matrices of different size")
    return Hadamard(w1_a, w1_b, w2_a, w2_b, _alpha(parts, rank), t1, t2, parts.get("dora_scale"), _bias(parts))


def _kronecker(parts: Mapping[str, Tensor], names: set[str]) -> Kronecker:
    for factor in ("lokr_w1", "lokr_w2"):
        pair = {f"{factor}_a", f"{factor}_b"}
        if factor in names:
            if names & pair:
                raise LayerError(factor, "is given twice, whole and factored")
        elif not pair <= names:
            raise LayerError("", f"has neither {factor} nor both of its factors")
        # The Tucker core of w2 joins axes 0 of both factors.
        elif not (factor == "lokr_w2" and "lokr_t2" in names):
            inner = (parts[f"{factor}_a"].shape[1], parts[f"{factor}_b"].shape[0])
            if inner[0] != inner[1]:
                raise LayerError(f"{factor}_a", f"has rank {inner[0]}; {factor}_b has {inner[1]}")
    if "lokr_t2" in names:
        if "lokr_w2_a" not in names:
            raise LayerError("lokr_t2", "has no factors to join")
        _check_core(parts, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
    tensors = {name.removeprefix("lokr_"): tensor for name, tensor in parts.items() if name.startswith("lokr_")}
    alpha = _alpha(parts, 1) if "alpha" in parts else None
    return Kronecker(**tensors, alpha=alpha, magnitude=parts.get("dora_scale"), bias=_bias(parts))


def _check_core(parts: Mapping[str, Tensor], core: str, outer: str, inner: str) -> None:
    ranks = (parts[outer].shape[0], parts[inner].shape[0])
    if tuple(parts[core].shape[:2]) != ranks:
        raise LayerError(core, f"has shape {list(parts[core].shape)}; [{ranks[0]}, {ranks[1]}, K, K] is wanted")


def _alpha(parts: Mapping[str, Tensor], rank: int) -> float:
    if "alpha" not in parts:
        return float(rank)
    if parts["alpha"].numel() != 1:
        raise LayerError("alpha", f"has shape {list(parts['alpha'].shape)}; one number is wanted")
    value = float(parts["alpha"].item())
    if not math.isfinite(value):
        raise LayerError("alpha", "holds NaN or infinity")
    return value


def _bias(parts: Mapping[str, Tensor], outputs: int = 0, name: str = "diff_b") -> Tensor | None:
    bias = parts.get(name)
    if bias is not None and (bias.dim() != 1 or (outputs and bias.numel() != outputs)):
        raise LayerError(name, f"has shape {list(bias.shape)}; [{outputs or 'outputs'}] is wanted")
    return bias


def _check_magnitude(magnitude: Tensor | None, outputs: int, inputs: int) -> None:
    if magnitude is None:
        return
    per_output = magnitude.numel() == outputs and magnitude.shape[0] == outputs
    per_input = magnitude.dim() >= 2 and magnitude.numel() == inputs == magnitude.shape[1]
    if not per_output and not per_input:
        raise LayerError("dora_scale", f"has shape {list(magnitude.shape)}; [{outputs}, 1] or [1, {inputs}] is wanted")


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype)

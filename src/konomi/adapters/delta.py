"""What each kind of update adds to a weight, in closed form, in float32 (float64 for a float64 weight).

Shapes: O output, I input, K kernel, R rank. A weight is [O, I] or [O, I, K, K], of norms and biases [O]. Updates of 1x1
convolutions and linear layers may have come with or without the two kernel axes; both fit both.
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Difference, Hadamard, Kronecker, LayerUpdate, LowRank, Replacement, Rescale
from konomi.errors import ModelError


def delta(update: LayerUpdate, weight: Tensor) -> Tensor:
    """W' - W, of the weight's shape, on its device; `weight` is the untouched one (DoRA and rescaling depend on it).

    Raises ModelError where the update is of another shape.
    """
    weight = weight.detach()
    if weight.dtype != torch.float64:
        weight = weight.to(torch.float32)
    update = _like(update, weight)
    match update:
        case LowRank():
            change = _fit(_low_rank(update), weight)
        case Hadamard():
            change = _fit(_hadamard(update), weight)
        case Kronecker():
            change = _fit(_kronecker(update), weight)
        case Replacement():
            return _fit(update.weight, weight) - weight
        case Rescale():
            return weight * _rescale_factor(update, weight)
        case Difference():
            return torch.zeros_like(weight) if update.weight is None else _fit(update.weight, weight)
    if update.magnitude is None:
        return change
    return _with_magnitude(weight + change, update.magnitude) - weight


def bias_delta(update: LayerUpdate, bias: Tensor) -> Tensor | None:
    """b' - b in the precision of `delta`, or None where the update leaves the bias alone."""
    if isinstance(update, Rescale) or update.bias is None:
        return None
    bias = bias.detach().to(torch.float64 if bias.dtype == torch.float64 else torch.float32)
    change = _fit(update.bias.to(bias), bias)
    return change - bias if isinstance(update, Replacement) else change


def _like(update: LayerUpdate, weight: Tensor) -> LayerUpdate:
    """The update with its tensors in the weight's dtype and on its device."""
    values = ((field.name, getattr(update, field.name)) for field in fields(update))
    moved: dict[str, Any] = {name: value.to(weight) for name, value in values if isinstance(value, Tensor)}
    return replace(update, **moved)


def _fit(change: Tensor, weight: Tensor) -> Tensor:
    rows = weight.shape[0]
    if change.dim() == 0 or change.shape[0] != rows or change.numel() != weight.numel():
        raise ModelError(f"the update is for a weight of shape {list(change.shape)}, this one is {list(weight.shape)}")
    return change.reshape(weight.shape)


def _low_rank(update: LowRank) -> Tensor:
    rank = update.down.shape[0]
    up, down = update.up.flatten(1), update.down.flatten(1)
    if up.shape[1] != rank and update.mid is None:
        raise ModelError(f"its halves do not belong together: down has rank {rank}, up {up.shape[1]}")
    scale = update.alpha / rank
    if update.mid is not None:
        return torch.einsum("rskl,or,si->oikl", update.mid, up, down) * scale
    return (up @ down).reshape(up.shape[0], *update.down.shape[1:]) * scale


def _hadamard(update: Hadamard) -> Tensor:
    """With cores t1, t2 [R, R, K, K] the factors are [R, O] and [R, I], without [O, R] and [R, I K K]."""
    scale = update.alpha / update.w1_b.shape[0]
    first = _product(update.w1_a, update.w1_b, update.t1)
    return first * _product(update.w2_a, update.w2_b, update.t2) * scale


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if core is None:
        return a.flatten(1) @ b.flatten(1)
    return torch.einsum("rskl,ro,si->oikl", core, a, b)


def _kronecker(update: Kronecker) -> Tensor:
    first, first_rank = _factor(update.w1, update.w1_a, update.w1_b, None)
    second, second_rank = _factor(update.w2, update.w2_a, update.w2_b, update.t2)
    rank = first_rank or second_rank
    scale = update.alpha / rank if update.alpha is not None and rank else 1.0
    if second.dim() == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()) * scale


def _factor(full: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> tuple[Tensor, int]:
    """The factor, and its inner size (0 where it is given outright)."""
    if full is not None:
        return full, 0
    if a is None or b is None:
        raise ModelError("a Kronecker factor is missing")
    return _product(a, b, core), b.shape[0]


def _rescale_factor(update: Rescale, weight: Tensor) -> Tensor:
    size = weight.shape[1] if update.on_input else weight.shape[0]
    if update.weight.numel() != size:
        side = "inputs" if update.on_input else "outputs"
        raise ModelError(f"it rescales {update.weight.numel()} {side}, this weight has {size}")
    shape = [1] * weight.dim()
    shape[1 if update.on_input else 0] = size
    return update.weight.reshape(shape)


def _with_magnitude(direction: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: each output (or input) of `direction` brought to its learned length."""
    outputs, inputs = direction.shape[:2]
    ones = [1] * (direction.dim() - 2)
    if magnitude.numel() == outputs and magnitude.shape[0] == outputs:
        lengths: Tensor = direction.flatten(1).norm(dim=1).view(outputs, 1, *ones)
    elif magnitude.numel() == inputs and magnitude.shape[0] == 1:
        lengths = direction.transpose(0, 1).flatten(1).norm(dim=1).view(1, inputs, *ones)
    else:
        raise ModelError(f"DoRA magnitude {list(magnitude.shape)} does not fit a weight {list(direction.shape)}")
    # A row of zeros has no direction: it stays zero rather than becoming NaN.
    return direction * (magnitude.reshape(lengths.shape) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny))

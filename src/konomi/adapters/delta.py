"""What an update adds to a weight, in closed form, in float32 (float64 for a float64 weight).

Shapes: O output, I input, K kernel. A weight is [O, I] or [O, I, K, K], of norms and biases [O].
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.kinds import LayerUpdate, tensors_of


def delta(update: LayerUpdate, weight: Tensor) -> Tensor:
    """W' - W, of the weight's shape, on its device; `weight` is the untouched one (DoRA, rescaling
    and rotations depend on it).

    Raises ModelError where the update is of another shape.
    """
    weight = _precise(weight)
    moved: dict[str, Any] = {name: tensor.to(weight) for name, tensor in tensors_of(update).items()}
    return replace(update, **moved).delta(weight)


def delta_at(update: LayerUpdate, weight: Tensor, strength: float) -> Tensor:
    """The same at a strength, in a tensor of its own: for most kinds strength times the change."""
    at_strength = update.about.at_strength
    if at_strength is not None and strength != 1.0:
        return delta(at_strength(update, strength), weight)
    change = delta(update, weight)
    given = [weight, *tensors_of(update).values()]
    if any(change.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in given):
        return change * strength
    # New memory for a large weight takes longer than the multiplication.
    return change if strength == 1.0 else change.mul_(strength)


def bias_delta(update: LayerUpdate, bias: Tensor) -> Tensor | None:
    """b' - b in the precision of `delta`, or None where the update leaves the bias alone."""
    return update.bias_delta(_precise(bias))


def _precise(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)

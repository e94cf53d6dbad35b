"""What several kinds share in the mathematics of a change.

Shapes: O output, I input, K kernel, R rank. A weight is [O, I] or [O, I, K, K], of norms and
biases [O]. Updates of 1x1 convolutions and linear layers may have come with or without the two
kernel axes; both fit both.
"""

import torch
from torch import Tensor

from konomi.errors import ModelError


def fit(change: Tensor, weight: Tensor) -> Tensor:
    """A change in the shape of its weight. Raises ModelError where it belongs to another."""
    rows = weight.shape[0]
    if change.dim() == 0 or change.shape[0] != rows or change.numel() != weight.numel():
        raise ModelError(
            f"the update is for a weight of shape {list(change.shape)}, this one is "
            f"{list(weight.shape)}"
        )
    return change.reshape(weight.shape)


def fit_bias(change: Tensor | None, bias: Tensor) -> Tensor | None:
    """The same for what is added to a bias [O], in its dtype and on its device; None stays None."""
    return None if change is None else fit(change.to(bias), bias)


def product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """Of two factors [O, R] and [R, I (K K)], or [R, O] and [R, I] joined by a Tucker core [R, R,
    K, K].
    """
    if core is None:
        return a.flatten(1) @ b.flatten(1)
    return torch.einsum("rskl,ro,si->oikl", core, a, b)


def precise(tensor: Tensor) -> Tensor:
    """At least in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

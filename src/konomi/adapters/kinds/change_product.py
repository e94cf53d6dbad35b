"""y = (W + dW) x + b for a frozen W and a change dW that is computed from a few parameters, with
gradients for x, b and those parameters alone.

The change is computed again for the backward pass, so that between the two passes there is no
copy of the weight in memory, and nothing that autograd would keep of how the change was made.
Where the weight is float32 there is one product with W + dW; in a smaller type an early change
lies below half a unit of the weight and would vanish, so there are two.

Shapes: N rows (or images), I input, O output features or channels, K kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from konomi.adapters.kinds.window import Window
from konomi.hardware import storage_formats

Change = Callable[..., Tensor]
"""From the parameters to dW, of the weight's shape, at least in float32."""


def changed_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window | None,
    change: Change,
    parameters: Sequence[Tensor],
) -> Tensor:
    """x [..., I] and weight [O, I], or x [N, I, h, w] and weight [O, I, K, K] with a window."""
    if window is not None and window.is_point(weight):
        rows = x.permute(0, 2, 3, 1)
        flat = weight.flatten(1)
        result: Tensor = _ChangedProduct.apply(rows, flat, bias, None, change, *parameters)
        return result.permute(0, 3, 1, 2)
    result = _ChangedProduct.apply(x, weight, bias, window, change, *parameters)
    return result


def product(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None) -> Tensor:
    """What a module of the base computes."""
    if window is not None:
        return window.convolve(x, weight, bias)
    compute = storage_formats.linear if storage_formats.is_cast(x, weight) else F.linear
    return compute(x, weight, bias)


class _ChangedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        window: Window | None,
        change: Change,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.window, ctx.change = window, change
        ctx.save_for_backward(x, weight, *parameters)
        delta = change(*parameters).view(weight.shape)
        if x.dtype == weight.dtype == delta.dtype:
            return product(x, weight + delta, bias, window)
        y = product(x, delta.to(x.dtype), bias, window)
        return y.add_(product(x, weight.to(x.dtype), None, window))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, *parameters = ctx.saved_tensors
        wants_x, _, wants_bias, _, _, *wants = ctx.needs_input_grad
        grad_y = grad_y.contiguous() if ctx.window is not None else grad_y
        with torch.enable_grad():
            leaves = [
                parameter.detach().requires_grad_(wanted)
                for parameter, wanted in zip(parameters, wants, strict=True)
            ]
            delta = ctx.change(*leaves).view(weight.shape)
        grad_x = None
        if wants_x:
            changed = delta.detach()
            if x.dtype == weight.dtype == delta.dtype:
                grad_x = _grad_input(grad_y, x, weight + changed, ctx.window)
            else:
                grad_x = _grad_input(grad_y, x, changed.to(x.dtype), ctx.window)
                grad_x.add_(_grad_input(grad_y, x, weight.to(x.dtype), ctx.window))
        grads: list[Tensor | None] = [None] * len(leaves)
        if any(wants):
            grad_delta = _grad_weight(grad_y, x, weight, ctx.window).to(delta.dtype)
            chosen = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(delta, chosen, grad_delta))
            grads = [next(found) if wanted else None for wanted in wants]
        grad_bias = None
        if wants_bias:
            channel = 1 if ctx.window is not None else grad_y.dim() - 1
            grad_bias = grad_y.sum([axis for axis in range(grad_y.dim()) if axis != channel])
        return grad_x, None, grad_bias, None, None, *grads


def _grad_input(grad_y: Tensor, x: Tensor, weight: Tensor, window: Window | None) -> Tensor:
    return grad_y @ weight if window is None else window.grad_input(grad_y, x, weight)


def _grad_weight(grad_y: Tensor, x: Tensor, weight: Tensor, window: Window | None) -> Tensor:
    if window is not None:
        return window.grad_weight(grad_y, x, weight.to(x.dtype))
    return grad_y.reshape(-1, grad_y.shape[-1]).t() @ x.reshape(-1, x.shape[-1])

"""Layers whose frozen weight is kept in a smaller number format than they compute in (diffusers:
layerwise casting).

The weight is cast where it is used, once on the way forward and once on the way back, and only its
small form is kept between the two: plain autograd would keep the large one. The answer is, bit for
bit, that of the same layer with its weight rounded beforehand.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_cast(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight has to be cast to be used with x. Autocast does that by itself."""
    return weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., I], weight [O, I] in any format, bias [O] in x's -> [..., O]. No gradient for the
    weight.
    """
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """x [N, I, H, W], weight [O, I, k, k'] in any format, bias [O] -> [N, O, h, w]. No gradient
    for the weight.
    """
    result: Tensor = _Convolution.apply(
        x, weight, bias, (list(stride), list(padding), list(dilation))
    )
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        rows = grad_y.reshape(-1, grad_y.shape[-1])
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return (rows @ weight.to(grad_y.dtype)).view(*grad_y.shape[:-1], -1), None, grad_bias


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[list[int], ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window = window
        stride, padding, dilation = window
        return F.conv2d(x, weight.to(x.dtype), bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x, _, grad_bias = torch.ops.aten.convolution_backward(
            grad_y,
            x,
            weight.to(x.dtype),
            [len(weight)],
            *ctx.window,
            False,
            [0, 0],
            1,
            [needs[0], False, needs[2]],
        )
        return grad_x, None, grad_bias, None

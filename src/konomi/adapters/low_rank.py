"""y = (W + scale * up @ down) x for a frozen W, with gradients for x, down and up alone.

Shapes: N rows (or images), I input, O output features or channels, K kernel, R rank, P output pixels.

Two ways to the same number. Two products: y = W x, then y += scale * up (down x) in place. Merged: one product with
W + scale * up @ down, made on the spot. Merging costs R I O multiplications and a pass over the weight, two products
cost N R (I + O) and a pass over the output, so merging pays once there are many more rows than I O / (I + O).
A merge rounds the update to the precision of the weight, so it is only offered where the weight is float32 or better;
in bfloat16 an early update lies below half a unit of the weight and would vanish.

Plain autograd would keep or make several tensors of the output's size for this; here x alone is kept.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MERGE_FROM = 2.0
"""Rows per I O / (I + O) from which merging is faster; see the table in docs/notes.md."""


def merging_pays(rows: int, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
    """Whether one merged product is faster than two; `in_features` counts the kernel's cells too."""
    if dtype in (torch.bfloat16, torch.float16):
        return False
    return rows * (in_features + out_features) >= _MERGE_FROM * in_features * out_features


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution's window moves."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def grad_input(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        grad: Tensor = self._backward(grad_y, x, weight, [True, False, False])[0]
        return grad

    def grad_weight(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        grad: Tensor = self._backward(grad_y, x, weight, [False, True, False])[1]
        return grad

    def _backward(self, grad_y: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            grad_y, x, weight, None, self.stride, self.padding, self.dilation, False, [0, 0], 1, wanted
        )


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, *, scale: float, merge: bool | None = None
) -> Tensor:
    """x [..., I], weight [O, I], bias [O], down [R, I], up [O, R] -> [..., O]. `merge` None decides by the rule."""
    if merge is None:
        out_features, in_features = weight.shape
        merge = merging_pays(x.numel() // max(in_features, 1), in_features, out_features, weight.dtype)
    result: Tensor = _LowRankLinear.apply(x, weight, bias, down, up, scale, merge)
    return result


def low_rank_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    window: Window,
    *,
    scale: float,
    merge: bool | None = None,
) -> Tensor:
    """x [N, I, h, w], weight [O, I, K, K], down [R, I, K, K], up [O, R, 1, 1] -> [N, O, h', w']."""
    if merge is None:
        cells = math.prod(window.stride)
        rows = x.shape[0] * x.shape[2] * x.shape[3] // cells
        merge = merging_pays(rows, weight[0].numel(), weight.shape[0], weight.dtype)
    result: Tensor = _LowRankConv.apply(x, weight, bias, down, up, window, scale, merge)
    return result


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, merge: bool
    ) -> Tensor:
        ctx.scale, ctx.master_dtype = scale, up.dtype
        down, up = down.to(x.dtype), up.mul(scale).to(x.dtype)
        if merge:
            ctx.save_for_backward(x, weight, down, up)
            return F.linear(x, torch.addmm(weight, up, down), bias)
        y = F.linear(x, weight, bias)
        hidden = x.reshape(-1, x.shape[-1]) @ down.t()
        y.view(-1, y.shape[-1]).addmm_(hidden, up.t())
        ctx.save_for_backward(x, weight, down, up, hidden)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, down, up, *kept = ctx.saved_tensors
        rows_x, rows_y = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
        hidden = kept[0] if kept else rows_x @ down.t()
        grad_hidden = rows_y @ up
        grad_x = (rows_y @ weight).addmm_(grad_hidden, down).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_down = (grad_hidden.t() @ rows_x).to(ctx.master_dtype)
        grad_up = (rows_y.t() @ hidden).to(ctx.master_dtype) * ctx.scale
        return grad_x, None, None, grad_down, grad_up, None, None


class _LowRankConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        window: Window,
        scale: float,
        merge: bool,
    ) -> Tensor:
        ctx.scale, ctx.master_dtype, ctx.window = scale, up.dtype, window
        down, up = down.to(x.dtype), up.mul(scale).to(x.dtype)
        if merge:
            ctx.save_for_backward(x, weight, down, up)
            merged = torch.addmm(weight.flatten(1), up.flatten(1), down.flatten(1)).view(weight.shape)
            return window.convolve(x, merged, bias)
        y = window.convolve(x, weight, bias)
        hidden = window.convolve(x, down)
        y += F.conv2d(hidden, up)
        ctx.save_for_backward(x, weight, down, up, hidden)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, down, up, *kept = ctx.saved_tensors
        window: Window = ctx.window
        hidden = kept[0] if kept else window.convolve(x, down)
        grad_hidden = F.conv2d(grad_y, up.transpose(0, 1))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = window.grad_input(grad_y, x, weight)
            grad_x += window.grad_input(grad_hidden, x, down)
        grad_down = window.grad_weight(grad_hidden, x, down).to(ctx.master_dtype)
        # [N, O, P] x [N, P, R], summed over N
        grad_up = torch.einsum("nop,nrp->or", grad_y.flatten(2), hidden.flatten(2))
        grad_up = grad_up.view(up.shape).to(ctx.master_dtype) * ctx.scale
        return grad_x, None, None, grad_down, grad_up, None, None, None

"""y = (W + scale * up @ down) x for a frozen W, with gradients for x, down and up alone.

Shapes: N rows (or images), I input, O output features or channels, K kernel, R rank, P output
pixels.

Two ways to the same number. Two products: y = scale * up (down x) + bias, then y += W x in place;
this way round, the small term is not lost in the rounding of the large one. Merged: one product
with W + scale * up @ down, made on the spot. Merging costs R I O multiplications and a pass over
the weight, two products cost N R (I + O) and a pass over the output, so merging pays once there
are many more rows than I O / (I + O). A merge rounds the update to the precision of the weight, so
it is only offered where the weight is float32 or better; in bfloat16 an early update lies below
half a unit of the weight and would vanish.

Plain autograd would keep or make several tensors of the output's size for this; here x alone is
kept, and a merged weight is made again for the backward pass. Thin products put their short side
first ([R, N], not [N, R]): CPU libraries are two to four times faster that way.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from konomi.adapters.kinds.window import Window

_MERGE_FROM = 2.0
"""Rows per I O / (I + O) from which merging is taken: fitted to layers timed one by one, not to
whole steps."""


def merging_pays(rows: int, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
    """Whether one merged product is faster than two; `in_features` counts the kernel's cells
    too.
    """
    if dtype in (torch.bfloat16, torch.float16):
        return False
    return rows * (in_features + out_features) >= _MERGE_FROM * in_features * out_features


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    *,
    scale: float,
    merge: bool | None = None,
) -> Tensor:
    """x [..., I], weight [O, I], bias [O], down [R, I], up [O, R] -> [..., O]. `merge` None
    decides by the rule.
    """
    if merge is None:
        out_features, in_features = weight.shape
        merge = merging_pays(x.numel() // in_features, in_features, out_features, x.dtype)
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
    pointwise = window.is_point(weight)
    if pointwise and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        rows = x.permute(0, 2, 3, 1)
        flat = (weight.flatten(1), bias, down.flatten(1), up.flatten(1))
        return low_rank_linear(rows, *flat, scale=scale, merge=merge).permute(0, 3, 1, 2)
    if merge is None:
        pixels = x.shape[0] * x.shape[2] * x.shape[3] // math.prod(window.stride)
        merge = merging_pays(pixels, weight[0].numel(), weight.shape[0], x.dtype)
    result: Tensor = _LowRankConv.apply(x, weight, bias, down, up, window, scale, merge)
    return result


def _cast(down: Tensor, up: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The factors in the dtype of the computation: down as it is, and scale * up as [R, O].

    With both halves lying the same way, the products of a square layer have the same shapes in
    pairs, and oneDNN keeps half as many kernels (about 0.6 MiB for each shape of a bfloat16
    product).
    """
    up = up if scale == 1.0 else up.mul(scale)
    return down.to(dtype), up.t() if up.dtype == dtype else up.t().to(
        dtype, memory_format=torch.contiguous_format
    )


def _master_grad(grad: Tensor, like: torch.dtype, scale: float = 1.0) -> Tensor:
    grad = grad.to(like)
    return grad if scale == 1.0 else grad.mul_(scale)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        merge: bool,
    ) -> Tensor:
        ctx.scale, ctx.merge, ctx.master = scale, merge, up.dtype
        down, up_RO = _cast(down, up, scale, x.dtype)
        stored, weight = weight, weight.to(x.dtype)
        if merge:
            ctx.save_for_backward(x, stored, down, up_RO)
            return F.linear(x, torch.addmm(weight, up_RO.t(), down), bias)
        x_NI = x.reshape(-1, x.shape[-1])
        hidden_RN = down @ x_NI.t()
        y_NO = hidden_RN.t() @ up_RO if bias is None else torch.addmm(bias, hidden_RN.t(), up_RO)
        y_NO.addmm_(x_NI, weight.t())
        ctx.save_for_backward(x, stored, down, up_RO, hidden_RN)
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, down, up_RO, *kept = ctx.saved_tensors
        weight = weight.to(x.dtype)
        x_NI, grad_y_NO = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
        hidden_RN = kept[0] if kept else down @ x_NI.t()
        grad_hidden_RN = up_RO @ grad_y_NO.t()
        grad_x = None
        if ctx.needs_input_grad[0] and ctx.merge:
            grad_x = (grad_y_NO @ torch.addmm(weight, up_RO.t(), down)).view(x.shape)
        elif ctx.needs_input_grad[0]:
            grad_x = (grad_hidden_RN.t() @ down).addmm_(grad_y_NO, weight).view(x.shape)
        grad_down = _master_grad(grad_hidden_RN @ x_NI, ctx.master)
        grad_up = _master_grad((hidden_RN @ grad_y_NO).t(), ctx.master, ctx.scale)
        return grad_x, None, None, grad_down, grad_up, None, None


class _LowRankConv(torch.autograd.Function):
    """The factor `up` is a matrix on [N, channels, P]; so is `down` where the window is a single
    point.
    """

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
        ctx.scale, ctx.merge, ctx.master, ctx.window = scale, merge, up.dtype, window
        down, up_RO = _cast(down, up.flatten(1), scale, x.dtype)
        stored, weight = weight, weight.to(x.dtype)
        if merge:
            ctx.save_for_backward(x, stored, down, up_RO)
            return window.convolve(x, _merged(weight, down, up_RO), bias)
        hidden_NRP = _hidden(x, down, window)
        if window.is_point(weight):
            y = _times(up_RO.t(), hidden_NRP).view(x.shape[0], -1, *x.shape[2:])
            y = y if bias is None else y.add_(bias[:, None, None])
            _add_product(y, weight.flatten(1), x.flatten(2))
        else:
            y = window.convolve(x, weight, bias).contiguous()
            _add_product(y, up_RO.t(), hidden_NRP)
        ctx.save_for_backward(x, stored, down, up_RO, hidden_NRP)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, down, up_RO, *kept = ctx.saved_tensors
        weight = weight.to(x.dtype)
        window: Window = ctx.window
        grad_y = grad_y.contiguous()
        grad_y_NOP = grad_y.flatten(2)
        hidden_NRP = kept[0] if kept else _hidden(x, down, window)
        grad_hidden_NRP = _times(up_RO, grad_y_NOP)
        grad_x = None
        if window.is_point(weight):
            if ctx.needs_input_grad[0]:
                grad_x = _times(down.flatten(1).t(), grad_hidden_NRP).view(x.shape)
                _add_product(grad_x, weight.flatten(1).t(), grad_y_NOP)
            grad_down = _summed_product(grad_hidden_NRP, x.flatten(2)).view(down.shape)
        else:
            grad_hidden = grad_hidden_NRP.view(x.shape[0], -1, *grad_y.shape[2:])
            if ctx.needs_input_grad[0] and ctx.merge:
                grad_x = window.grad_input(grad_y, x, _merged(weight, down, up_RO))
            elif ctx.needs_input_grad[0]:
                grad_x = window.grad_input(grad_y, x, weight).add_(
                    window.grad_input(grad_hidden, x, down)
                )
            grad_down = window.grad_weight(grad_hidden, x, down)
        grad_up = _summed_product(hidden_NRP, grad_y_NOP).t()[:, :, None, None]
        grad_down = _master_grad(grad_down, ctx.master)
        return (
            grad_x,
            None,
            None,
            grad_down,
            _master_grad(grad_up, ctx.master, ctx.scale),
            None,
            None,
            None,
        )


def _merged(weight: Tensor, down: Tensor, up_RO: Tensor) -> Tensor:
    return torch.addmm(weight.flatten(1), up_RO.t(), down.flatten(1)).view(weight.shape)


def _hidden(x: Tensor, down: Tensor, window: Window) -> Tensor:
    """down x, [N, R, P]."""
    if window.is_point(down):
        return _times(down.flatten(1), x.flatten(2))
    return window.convolve(x, down).flatten(2)


# A batch of one goes through plain matrix products: `matmul` would fold and transpose it.


def _times(left_AB: Tensor, right_NBP: Tensor) -> Tensor:
    """[N, A, P]."""
    if right_NBP.shape[0] == 1:
        return (left_AB @ right_NBP[0])[None]
    return torch.bmm(left_AB.expand(right_NBP.shape[0], -1, -1), right_NBP)


def _summed_product(left_NAP: Tensor, right_NBP: Tensor) -> Tensor:
    """[A, B], summed over N and P."""
    if left_NAP.shape[0] == 1:
        return left_NAP[0] @ right_NBP[0].t()
    return torch.bmm(left_NAP, right_NBP.transpose(1, 2)).sum(0)


def _add_product(to: Tensor, left_CR: Tensor, right_NRP: Tensor) -> None:
    """to [N, C, h, w] += left @ right, in place."""
    if to.shape[0] == 1:
        to.view(to.shape[1], -1).addmm_(left_CR, right_NRP[0])
    else:
        to.view(*to.shape[:2], -1).baddbmm_(left_CR.expand(to.shape[0], -1, -1), right_NRP)

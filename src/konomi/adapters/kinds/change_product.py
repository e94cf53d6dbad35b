"""y = (W + dW) x + b for a frozen W and a change dW that is computed from a few parameters, with
gradients for x, b and those parameters alone.

The change is computed again for the backward pass, so that between the two passes there is no
copy of the weight in memory, and nothing that autograd would keep of how the change was made.
Where the weight is float32 there is one product with W + dW; in a smaller type an early change
lies below half a unit of the weight and would vanish, so there are two.

Shapes: N rows (or images), I input, O output features or channels, K kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from konomi.adapters.kinds.window import Window
from konomi.hardware import storage_formats

Pullback = Callable[[Tensor], Sequence[Tensor]]
"""From the gradient of a weight to those of the parameters that it is made of, in their order."""


class Formula(Protocol):
    """How a weight is made of the base's, [O, I] or [O, I, K, K], and a few parameters."""

    def change(self, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """dW of the weight's shape, at least in float32."""
        ...

    def changed(self, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """W + dW in float32, a new tensor."""
        ...

    def changed_and_pullback(
        self, weight: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Pullback]:
        """The same for the backward pass."""
        ...


def changed_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window | None,
    formula: Formula,
    parameters: Sequence[Tensor],
    *,
    changed: Tensor | None = None,
) -> Tensor:
    """x [..., I] and weight [O, I], or x [N, I, h, w] and weight [O, I, K, K] with a window.
    `changed`: W + dW, where it is known already.
    """
    result: Tensor = _ChangedProduct.apply(x, weight, bias, window, formula, changed, *parameters)
    return result


def recomputed(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`compute(*inputs)`, of which nothing but the inputs is kept for the backward pass."""
    result: Tensor = _Recomputed.apply(compute, *inputs)
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
        formula: Formula,
        changed: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.window, ctx.formula = window, formula
        ctx.save_for_backward(x, weight, *parameters)
        if x.dtype == weight.dtype == torch.float32:
            whole = formula.changed(weight, parameters) if changed is None else changed
            return _multiply(x, whole, bias, window)
        change = formula.change(weight, parameters).to(x.dtype)
        y = product(x, change, bias, window)
        return y.add_(product(x, weight.to(x.dtype), None, window))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, *parameters = ctx.saved_tensors
        window: Window | None = ctx.window
        wants_x, _, wants_bias, *_ = ctx.needs_input_grad
        wants = ctx.needs_input_grad[6:]
        grad_y = grad_y.contiguous() if window is not None else grad_y
        whole, pullback = ctx.formula.changed_and_pullback(weight.float(), parameters)
        grad_x = None
        if wants_x and x.dtype == torch.float32:
            grad_x = _grad_input(grad_y, x, whole, window)
        elif wants_x:
            change = (whole - weight).to(x.dtype)
            grad_x = _grad_input(grad_y, x, change, window)
            grad_x.add_(_grad_input(grad_y, x, weight.to(x.dtype), window))
        grads: list[Tensor | None] = [None] * len(parameters)
        if any(wants):
            grad_weight = _grad_weight(grad_y, x, weight, window).float()
            grads = [g if w else None for g, w in zip(pullback(grad_weight), wants, strict=True)]
        grad_bias = None
        if wants_bias:
            channel = 1 if window is not None else grad_y.dim() - 1
            grad_bias = grad_y.sum([axis for axis in range(grad_y.dim()) if axis != channel])
        return grad_x, None, grad_bias, None, None, None, *grads


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return compute(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        _, *wants = ctx.needs_input_grad
        with torch.enable_grad():
            inputs = [
                tensor.detach().requires_grad_(wanted)
                for tensor, wanted in zip(ctx.saved_tensors, wants, strict=True)
            ]
            y = ctx.compute(*inputs)
        wanted_inputs = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(y, wanted_inputs, grad_y))
        return None, *(next(found) if wanted else None for wanted in wants)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None) -> Tensor:
    if window is not None and window.is_point(weight) and x.is_contiguous():
        # A matrix at every pixel: a small convolution costs more to set up than to compute.
        flat, out = weight.flatten(1), weight.shape[0]
        y = torch.matmul(flat, x.flatten(2))
        y = y if bias is None else y.add_(bias[:, None])
        return y.view(x.shape[0], out, *x.shape[2:])
    return product(x, weight, bias, window)


def _grad_input(grad_y: Tensor, x: Tensor, weight: Tensor, window: Window | None) -> Tensor:
    if window is None:
        return grad_y @ weight
    if window.is_point(weight):
        return torch.matmul(weight.flatten(1).t(), grad_y.flatten(2)).view(x.shape)
    return window.grad_input(grad_y, x, weight)


def _grad_weight(grad_y: Tensor, x: Tensor, weight: Tensor, window: Window | None) -> Tensor:
    if window is None:
        return grad_y.reshape(-1, grad_y.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    if window.is_point(weight):
        grads = torch.matmul(grad_y.flatten(2), x.flatten(2).transpose(1, 2))
        return grads.sum(0).view(weight.shape)
    return window.grad_weight(grad_y, x, weight.to(x.dtype))

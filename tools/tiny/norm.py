"""Group normalisation with a backward pass that is fast on the CPU in bfloat16 and channels-last.

PyTorch's own takes about half of the VAE's step there when a group holds one channel. Same
mathematics, used while training only. n batch, c channels, h w pixels, g groups, d channels of a
group.
"""

import types
from typing import Any

import torch
from torch import Tensor, nn


class GroupNormFunction(torch.autograd.Function):
    """`native_group_norm` forward; backward from the per-channel sums of dy and dy * x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        n, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        n, c, h, w = x.shape
        g, d = ctx.groups, c // ctx.groups
        weight, mean, rstd = weight.float(), mean.float(), rstd.float()
        product = (dy * x).sum((2, 3), dtype=torch.float32)
        plain = dy.sum((2, 3), dtype=torch.float32)
        product_g = (product * weight).view(n, g, d).sum(2)
        plain_g = (plain * weight).view(n, g, d).sum(2)
        on_x = (plain_g * mean - product_g) * rstd**3 / (d * h * w)
        constant = -on_x * mean - plain_g * rstd / (d * h * w)

        def spread(per_group: Tensor) -> Tensor:
            return per_group[:, :, None].expand(n, g, d).reshape(n, c, 1, 1)

        dx = torch.addcmul(spread(constant).to(x.dtype), x, spread(on_x).to(x.dtype))
        dx.addcmul_(dy, (spread(rstd) * weight[None, :, None, None]).to(x.dtype))
        centred = product.view(n, g, d) - plain.view(n, g, d) * mean[:, :, None]
        dweight = (centred * rstd[:, :, None]).sum(0).reshape(c)
        return dx, dweight, plain.sum(0), None, None


def _forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.dim() != 4 or not torch.is_grad_enabled():
        return nn.GroupNorm.forward(self, x)
    out: Tensor = GroupNormFunction.apply(x, self.weight, self.bias, self.num_groups, self.eps)
    return out


def use_fast_group_norm(model: nn.Module) -> None:
    """Swap the forward of every GroupNorm of a model."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]

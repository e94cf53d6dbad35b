"""The layers of Stable Diffusion's UNet, named and computed as diffusers does; see
`konomi.models.unet`. Some serve the autoencoder too.

Shapes: B batch, C channels, H W grid, N = H W positions, T text positions, D text width, E width
of the time embedding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.hardware.storage_formats import conv2d, is_cast, linear

Runner = Callable[..., Tensor]
"""Calls a module with its inputs, keeping its activations or not."""


def timestep_embedding(values_B: Tensor, width: int) -> Tensor:
    """[B] numbers -> [B, width] cosines and sines, float32 (Vaswani et al. 2017)."""
    half = width // 2
    exponents = (
        -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values_B.device) / half
    )
    angles = values_B[:, None].float() * torch.exp(exponents)[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class Convolution(nn.Conv2d):
    """PyTorch's, with one group and zeros around; its frozen weight may be kept in a smaller
    format.
    """

    def reset_parameters(self) -> None:
        # A part without numbers gets them from a file: nothing is to be drawn, which takes a third
        # of the time of building one.
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        compute: Any = conv2d if is_cast(input, self.weight) else F.conv2d
        output: Tensor = compute(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation
        )
        return output


class Linear(nn.Linear):
    """PyTorch's; its frozen weight may be kept in a smaller format."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        compute = linear if is_cast(input, self.weight) else F.linear
        return compute(input, self.weight, self.bias)


class Embedding(nn.Module):
    """Two linear layers over sinusoids, or over text and sizes."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(in_width, width)
        self.linear_2 = Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        embedded: Tensor = self.linear_2(F.silu(self.linear_1(inputs)))
        return embedded


class Resnet(nn.Module):
    """Two convolutions with the time in between; without one in an autoencoder."""

    def __init__(
        self, in_channels: int, channels: int, *, time: int | None, groups: int, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Convolution(in_channels, channels, 3, padding=1)
        if time is not None:
            self.time_emb_proj = Linear(time, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv2 = Convolution(channels, channels, 3, padding=1)
        self.conv_shortcut = (
            Convolution(in_channels, channels, 1) if in_channels != channels else None
        )

    def forward(self, grid_BCHW: Tensor, time_BE: Tensor | None = None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(grid_BCHW)))
        if time_BE is not None:
            hidden = hidden + self.time_emb_proj(F.silu(time_BE))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        if self.conv_shortcut is not None:
            grid_BCHW = self.conv_shortcut(grid_BCHW)
        output: Tensor = grid_BCHW + hidden
        return output


class Attention(nn.Module):
    """Multi-head attention over itself or over text."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(context_width, width, bias=False)
        self.to_v = Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([Linear(width, width), nn.Dropout(0.0)])

    def forward(self, states_BNC: Tensor, context_BTD: Tensor) -> Tensor:
        batch, _, width = states_BNC.shape

        def split(states: Tensor) -> Tensor:
            return states.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = self.to_q(states_BNC), self.to_k(context_BTD), self.to_v(context_BTD)
        mixed = attend(split(query), split(key), split(value))
        return _dropped(
            self.to_out[1], self.to_out[0](mixed.transpose(1, 2).reshape(batch, -1, width))
        )


PLAIN_PRODUCTS = 1024 * 1024
"""Query times key positions up to which plain products are the faster way to train in bfloat16 on
a CPU."""


def attend(query_BHNC: Tensor, key_BHTC: Tensor, value_BHTC: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(C)) V.

    On the CPU the fused kernel's backward pass in bfloat16 takes 1.3 (256 positions) to 5 times
    (64) as long as plain products do; at 4,096 positions it is the faster one, and it keeps no
    scores.
    """
    positions = query_BHNC.shape[-2] * key_BHTC.shape[-2]
    on_cpu = query_BHNC.device.type == "cpu" and query_BHNC.dtype == torch.bfloat16
    if on_cpu and torch.is_grad_enabled() and positions <= PLAIN_PRODUCTS:
        scores_BHNT = torch.matmul(
            query_BHNC * query_BHNC.shape[-1] ** -0.5, key_BHTC.transpose(-1, -2)
        )
        return torch.matmul(scores_BHNT.softmax(-1), value_BHTC)
    return F.scaled_dot_product_attention(query_BHNC, key_BHTC, value_BHTC)


def _dropped(dropout: Any, states: Tensor) -> Tensor:
    # At a rate of zero, the only one published, PyTorch would still multiply by a mask.
    output: Tensor = dropout(states) if dropout.p > 0 else states
    return output


class GEGLU(nn.Module):
    """GEGLU (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, states: Tensor) -> Tensor:
        projected: Tensor = self.proj(states)
        value, gate = projected.chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Widen by four, gate, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GEGLU(width, 4 * width), nn.Dropout(0.0), Linear(4 * width, width)]
        )

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.net[2](_dropped(self.net[1], self.net[0](states)))
        return output


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, states_BNC: Tensor, text_BTD: Tensor) -> Tensor:
        normed = self.norm1(states_BNC)
        states_BNC = self.attn1(normed, normed) + states_BNC
        states_BNC = self.attn2(self.norm2(states_BNC), text_BTD) + states_BNC
        output: Tensor = self.ff(self.norm3(states_BNC)) + states_BNC
        return output


class Transformer(nn.Module):
    """Blocks over the flattened grid; around them 1x1 convolutions or linear layers."""

    def __init__(
        self,
        channels: int,
        context_width: int,
        *,
        heads: int,
        depth: int,
        groups: int,
        linear: bool,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Convolution(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [Block(channels, context_width, heads) for _ in range(depth)]
        )
        self.proj_out = Linear(channels, channels) if linear else Convolution(channels, channels, 1)

    def forward(self, grid_BCHW: Tensor, text_BTD: Tensor, run: Runner) -> Tensor:
        batch, channels, height, width = grid_BCHW.shape
        hidden = self.norm(grid_BCHW)
        if not self.linear:
            hidden = self.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        if self.linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = run(block, hidden, text_BTD)
        if self.linear:
            hidden = self.proj_out(hidden)
        hidden = hidden.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        if not self.linear:
            hidden = self.proj_out(hidden)
        output: Tensor = hidden + grid_BCHW
        return output


class Resample(nn.Module):
    """A convolution that halves the grid, or one after it was doubled."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Convolution(channels, channels, 3, stride=stride, padding=1)

    def forward(self, grid_BCHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if self.stride == 1:
            # Odd sides: the skip connection that comes next says how far to enlarge.
            scale = 2.0 if size is None else None
            grid_BCHW = F.interpolate(grid_BCHW, size=size, scale_factor=scale, mode="nearest")
        output: Tensor = self.conv(grid_BCHW)
        return output


class Level(nn.Module):
    """Resnets of one resolution, each followed by a transformer if there are any, then a sampler
    if there is one.
    """

    def __init__(
        self,
        resnets: Sequence[Resnet],
        transformers: Sequence[Transformer],
        sampler: str,
        channels: int,
    ) -> None:
        super().__init__()
        if transformers:
            self.attentions = nn.ModuleList(transformers)
        self.resnets = nn.ModuleList(resnets)
        if sampler == "downsamplers":
            self.downsamplers = nn.ModuleList([Resample(channels, stride=2)])
        elif sampler == "upsamplers":
            self.upsamplers = nn.ModuleList([Resample(channels, stride=1)])

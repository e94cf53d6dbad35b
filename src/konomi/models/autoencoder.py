"""The autoencoder of Stable Diffusion in plain PyTorch (Rombach et al. 2022, section 3.1).

Names of parameters, and every operation on numbers, are those of diffusers' `AutoencoderKL`, so
that weights and results are the same; importing that costs three seconds, as its UNet does (see
`konomi.models.unet`).

Shapes: B batch, C channels, H W grid, N = H W positions, L latent channels, h w latent grid (H /
8, W / 8).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.models.unet_layers import Resample, Resnet

_EPS = 1e-6
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "double_z": (True,),
    "norm_type": ("group",),
}
_LOG_VARIANCE = (-30.0, 20.0)


class Autoencoder(nn.Module):
    """Pixels to the distribution of their latents, and latents to pixels.

    Raises ValueError for a config that names other blocks than Stable Diffusion's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check(config)
        widths: list[int] = list(config["block_out_channels"])
        latent = int(config["latent_channels"])
        shape: dict[str, Any] = {
            "layers": int(config.get("layers_per_block", 1)),
            "groups": int(config.get("norm_num_groups", 32)),
            "attention": bool(config.get("mid_block_add_attention", True)),
        }
        self.encoder = Encoder(int(config.get("in_channels", 3)), widths, 2 * latent, **shape)
        self.decoder = Decoder(latent, widths, int(config.get("out_channels", 3)), **shape)
        self.quant_conv = (
            nn.Conv2d(2 * latent, 2 * latent, 1) if config.get("use_quant_conv", True) else None
        )
        self.post_quant_conv = (
            nn.Conv2d(latent, latent, 1) if config.get("use_post_quant_conv", True) else None
        )

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels from -1 to 1 -> mean and standard deviation [B, L, h, w], unscaled."""
        moments = self.encoder(pixels_BCHW)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(*_LOG_VARIANCE))

    def decode(self, latents_BLhw: Tensor) -> Tensor:
        """Unscaled latents -> pixels [B, C, H, W], about -1 to 1."""
        if self.post_quant_conv is not None:
            latents_BLhw = self.post_quant_conv(latents_BLhw)
        pixels: Tensor = self.decoder(latents_BLhw)
        return pixels


def _check(config: Mapping[str, Any]) -> None:
    odd = [
        f"{name} = {config[name]}"
        for name, plain in _PLAIN.items()
        if config.get(name, plain[0]) not in plain
    ]
    for name, plain in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        kinds = config.get(name, [plain] * len(config["block_out_channels"]))
        if len(kinds) != len(config["block_out_channels"]) or any(kind != plain for kind in kinds):
            odd.append(f"{name} = {kinds}")
    if odd:
        raise ValueError(f"an autoencoder unlike Stable Diffusion's: {', '.join(odd)}")


class Encoder(nn.Module):
    """Halves the grid at every level but the last."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_channels: int,
        *,
        layers: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        blocks = []
        for level, width in enumerate(widths):
            before = widths[max(level - 1, 0)]
            sampler = Downsample(width) if level < len(widths) - 1 else None
            blocks.append(Stage([before, *[width] * layers], groups, down=sampler))
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block = Middle(widths[-1], groups, attention=attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        grid_BCHW = self.conv_in(grid_BCHW)
        for block in self.down_blocks:
            grid_BCHW = block(grid_BCHW)
        output: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(grid_BCHW))))
        return output


class Decoder(nn.Module):
    """Doubles the grid at every level but the last; one more resnet a level than the encoder."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_channels: int,
        *,
        layers: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        downwards = list(reversed(widths))
        self.conv_in = nn.Conv2d(in_channels, downwards[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = Middle(downwards[0], groups, attention=attention)
        for level, width in enumerate(downwards):
            before = downwards[max(level - 1, 0)]
            sampler = Resample(width, stride=1) if level < len(widths) - 1 else None
            self.up_blocks.append(Stage([before, *[width] * (layers + 1)], groups, up=sampler))
        self.conv_norm_out = nn.GroupNorm(groups, downwards[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(downwards[-1], out_channels, 3, padding=1)

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        grid_BCHW = self.mid_block(self.conv_in(grid_BCHW))
        for block in self.up_blocks:
            grid_BCHW = block(grid_BCHW)
        output: Tensor = self.conv_out(F.silu(self.conv_norm_out(grid_BCHW)))
        return output


class Stage(nn.Module):
    """Resnets of one resolution, through the given channels, then a sampler if there is one."""

    def __init__(
        self,
        channels: Sequence[int],
        groups: int,
        *,
        down: nn.Module | None = None,
        up: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [_resnet(before, after, groups) for before, after in pairwise(channels)]
        )
        if down is not None:
            self.downsamplers = nn.ModuleList([down])
        if up is not None:
            self.upsamplers = nn.ModuleList([up])

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        for module in (
            *self.resnets,
            *getattr(self, "downsamplers", ()),
            *getattr(self, "upsamplers", ()),
        ):
            grid_BCHW = module(grid_BCHW)
        return grid_BCHW


class Middle(nn.Module):
    """Resnet, attention, resnet."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList([_resnet(channels, channels, groups) for _ in range(2)])

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        grid_BCHW = self.resnets[0](grid_BCHW)
        for attention in self.attentions:
            grid_BCHW = attention(grid_BCHW)
        output: Tensor = self.resnets[1](grid_BCHW)
        return output


class SpatialAttention(nn.Module):
    """One head over all positions, added to what comes in."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = grid_BCHW.shape
        states_BNC = self.group_norm(grid_BCHW.flatten(2)).transpose(1, 2)
        query, key, value = (
            layer(states_BNC)[:, None] for layer in (self.to_q, self.to_k, self.to_v)
        )
        mixed_BNC = F.scaled_dot_product_attention(query, key, value)[:, 0]
        mixed_BCN = self.to_out[0](mixed_BNC).transpose(-1, -2)
        output: Tensor = mixed_BCN.reshape(batch, channels, height, width) + grid_BCHW
        return output


class Downsample(nn.Module):
    """A convolution of stride 2, padded right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        output: Tensor = self.conv(F.pad(grid_BCHW, (0, 1, 0, 1)))
        return output


def _resnet(in_channels: int, channels: int, groups: int) -> Resnet:
    return Resnet(in_channels, channels, time=None, groups=groups, eps=_EPS)

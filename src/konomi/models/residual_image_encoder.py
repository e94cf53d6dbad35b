"""The image encoder of the CLIP inside konomi: a small residual network, as CLIP's RN50 is a large
one.

Convolutions (He et al. 2016, "Deep Residual Learning"; Radford et al. 2021, section 2.4) learn to
tell drawings apart from far fewer pictures than a transformer of the same size. Shapes: N
pictures, C channels, H W pixels, P positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

PATCH = 4
"""Side in pixels of what the first convolution reads at once, without overlap."""
GROUPS = 8
WIDTHS = (32, 64, 128, 160)


@dataclass(frozen=True, slots=True)
class ImageEncoderOutput:
    """Named as transformers names the output of CLIP's image encoders."""

    last_hidden_state: Tensor
    """[N, P, C]: features of places, row by row."""
    pooler_output: Tensor
    """[N, C]: their mean."""


class Residual(nn.Module):
    """Two convolutions beside the way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, channels)

    def forward(self, grid_NCHW: Tensor) -> Tensor:
        hidden = functional.silu(self.norm1(self.conv1(grid_NCHW)))
        return functional.silu(grid_NCHW + self.norm2(self.conv2(hidden)))


class Entry(nn.Module):
    """A convolution into a level: patches into the first, half the side into the others."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        first = in_channels == 3
        self.conv = nn.Conv2d(
            in_channels,
            channels,
            kernel_size=PATCH if first else 3,
            stride=PATCH if first else 2,
            padding=0 if first else 1,
            bias=False,
        )
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, grid_NCHW: Tensor) -> Tensor:
        return functional.silu(self.norm(self.conv(grid_NCHW)))


class ResidualImageEncoder(nn.Module):
    """[N, 3, H, W] pixels -> features; each level has half the side of the one before."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        before = (3, *widths[:-1])
        self.levels = nn.Sequential(
            *(
                nn.Sequential(Entry(inner, outer), Residual(outer))
                for inner, outer in zip(before, widths, strict=True)
            )
        )

    def forward(self, pixel_values: Tensor) -> ImageEncoderOutput:
        places_NPC = self.levels(pixel_values).flatten(2).transpose(1, 2)
        return ImageEncoderOutput(places_NPC, places_NPC.mean(1))

    def early_layers(self, pixel_values: Tensor) -> list[Tensor]:
        """Features [N, C, P] of the first half of the levels."""
        found, grid_NCHW = [], pixel_values
        for level in list(self.levels)[: len(self.levels) // 2]:
            grid_NCHW = level(grid_NCHW)
            found.append(grid_NCHW.flatten(2))
        return found

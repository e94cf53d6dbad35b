"""Pictures and masks as tensors to draw from."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konomi.data.pixels import mask_of


def fitted_size(size: tuple[int, int], resolution: int, factor: int) -> tuple[int, int]:
    """(width, height) to draw a picture of `size` at: its own where it is no larger than the
    base's square of `resolution`, else scaled to that area; multiples of `factor`.
    """
    width, height = size
    scale = min(1.0, resolution / (width * height) ** 0.5)
    if scale == 1.0:
        return max(width // factor, 1) * factor, max(height // factor, 1) * factor
    return max(round(width * scale / factor), 1) * factor, max(
        round(height * scale / factor), 1
    ) * factor


def init_to_pixels(image: Image.Image, width: int, height: int) -> Tensor:
    """[1, 3, H, W] from -1 to 1, stretched to the size; transparent parts on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        image = on_white
    image = image.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return levels.float() / 127.5 - 1


def mask_to_pixels(mask: Image.Image, width: int, height: int) -> Tensor:
    """[1, 1, H, W] from 0 to 1: how white the mask is; where it is transparent, it is not
    painted.
    """
    grey = mask_of(mask)
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(grey))[None, None].float() / 255

"""Pictures and masks as tensors to draw from."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
    """[1, 1, H, W] from 0 to 1: how white the mask is; where a mask is all white with holes, how opaque."""
    grey = mask.convert("L")
    if mask.mode in ("RGBA", "LA") and grey.getextrema()[0] == grey.getextrema()[1]:
        grey = mask.getchannel("A")
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(grey))[None, None].float() / 255

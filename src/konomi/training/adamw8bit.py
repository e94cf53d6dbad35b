"""AdamW whose moments take one byte a value instead of four (Dettmers et al. 2022), by
bitsandbytes.

Tensors of fewer than 4,096 values keep moments in float32 there: most of a LoRA does, next to
nothing of a whole model.
"""

from importlib import metadata
from typing import Any

import torch
from torch.optim import Optimizer

from konomi.errors import RecipeError

FIRST_ON_CPU = (0, 50)
"""Older versions end the first step on a CPU with an error of their own."""


def make_adamw8bit(
    settings: list[dict[str, Any]], betas: tuple[float, float], device: torch.device
) -> Optimizer:
    """The optimiser over parameter groups. Raises ModuleNotFoundError, RecipeError for a version
    without CPU code.
    """
    from bitsandbytes.optim import AdamW8bit

    version = metadata.version("bitsandbytes")
    if device.type == "cpu" and tuple(int(part) for part in version.split(".")[:2]) < FIRST_ON_CPU:
        raise RecipeError(
            f"optimizer.kind is 'adamw8bit', and bitsandbytes {version} computes on GPUs only. "
            "Update it: pip install -U 'bitsandbytes>=0.50', or use another optimizer.kind."
        )
    for group in settings:
        for parameter in group["params"]:
            # Its first step would do this as well, but after laying out the moments as the weight
            # was laid out: its CUDA kernels count values in memory order, and a checkpoint would
            # bring them back in another.
            parameter.data = parameter.data.contiguous()
    made: Optimizer = AdamW8bit(settings, betas=betas)
    return made

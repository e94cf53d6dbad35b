"""DyLoRA (Valipour et al. 2022): a LoRA whose first ranks are good without the others.

In training each sample is computed in the first ranks alone, as many as are drawn for it, at the
scale of all of them. The result is a plain LoRA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from konomi.config.bounds import STRICT
from konomi.diffusion.random import Rng


@dataclass(frozen=True, slots=True, kw_only=True)
class DyloraSettings:
    """LoRA that is good at every lower rank too (Valipour et al. 2022, "DyLoRA")."""

    __pydantic_config__ = STRICT

    unit: Annotated[int, Field(ge=1, le=1024)] = 1
    """Each sample is computed in the first ranks alone, as many as are drawn, in multiples of
    this. The file is a LoRA, which `konomi resize` cuts to any of these ranks."""


def first_ranks(shape: Sequence[int], unit: int, rng: Rng) -> Tensor:
    """Bool [B, *shape], true for the first ranks alone, as many as are drawn for each sample in
    multiples of `unit`; `shape` has one axis of ranks, the others are 1.
    """
    ranks = math.prod(shape)
    drawn = rng.uniform([1] * len(shape)) * math.ceil(ranks / unit)
    index = torch.arange(ranks, device=drawn.device).reshape(list(shape))
    return index < (drawn.floor() + 1) * unit

"""Dropout (Srivastava et al. 2014) whose randomness is an argument: the same masks however a batch
is split into micro-batches.

Shapes: B samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from konomi.diffusion.random import Rng


def dropout(states: Tensor, rate: float, rng: Rng) -> Tensor:
    """[B, ...] with each value left out by chance and the others made larger; `rng` has a key per
    sample.
    """
    return states * keep_mask(states.shape[1:], rate, rng) * keep_scale(rate)


def keep_mask(shape: Sequence[int], rate: float, rng: Rng) -> Tensor:
    """Bool [B, *shape], true where a value stays."""
    return rng.uniform(shape) >= rate


def keep_scale(rate: float) -> float:
    """1 / (1 - rate), which keeps the mean; 0 where everything is dropped."""
    return 1.0 / (1.0 - rate) if rate < 1.0 else 0.0


def for_batch(rng: Rng, batch: int) -> Rng:
    """One key per row of a batch that need not have as many rows as there are keys."""
    if len(rng) >= batch:
        return Rng(rng.keys[:batch])
    rows = torch.arange(batch, device=rng.keys.device)
    return Rng(rng.keys[rows % len(rng)]).for_samples(rows // len(rng))

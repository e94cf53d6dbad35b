"""The loss on held-out images, always with the same noise at the same timesteps, so that runs can be compared."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from konomi.data.batch import Examples
from konomi.diffusion.random import Rng


class PerExampleLoss(Protocol):
    def __call__(self, examples: Examples, rng: Rng, timesteps_B: Tensor) -> Tensor:
        """[B]."""
        ...


def spread_timesteps(count: int, low: int, high: int) -> list[int]:
    """`count` timesteps in the middle of equal stretches of low..high."""
    width = (high - low + 1) / count
    return [int(low + (index + 0.5) * width) for index in range(count)]


@torch.no_grad()
def validation_loss(
    loss: PerExampleLoss, batches: Sequence[Examples], timesteps: Sequence[int], device: torch.device
) -> float:
    """Mean over all images and timesteps. The seed is fixed: it must not follow the run's."""
    total, count = 0.0, 0
    for examples in batches:
        moved = examples.to(device)
        for timestep in timesteps:
            rng = Rng.for_step(0, timestep, device=device)
            timesteps_B = torch.full((len(examples),), timestep, dtype=torch.int64, device=device)
            total += float(loss(moved, rng, timesteps_B).sum())
            count += len(examples)
    return total / count

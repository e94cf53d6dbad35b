"""The loss on held-out images, always with the same noise at the same timesteps, so that runs can
be compared.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from konomi.data.batch import Examples
from konomi.diffusion.process import Process
from konomi.diffusion.random import Rng


class PerExampleLoss(Protocol):
    def __call__(self, examples: Examples, rng: Rng, timesteps_B: Tensor) -> Tensor:
        """[B]."""
        ...


@torch.no_grad()
def validation_loss(
    loss: PerExampleLoss,
    batches: Sequence[Examples],
    timesteps: Sequence[float],
    process: Process,
    device: torch.device,
) -> float:
    """Mean over all images and timesteps. The seed is fixed: it must not follow the run's."""
    total, count = 0.0, 0
    for examples in batches:
        moved = examples.to(device)
        for timestep in timesteps:
            rng = Rng.for_step(0, timestep, device=device)
            timesteps_B = process.timesteps([timestep] * len(examples), device)
            total += float(loss(moved, rng, timesteps_B).sum())
            count += len(examples)
    return total / count

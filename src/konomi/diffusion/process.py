"""What a base's noise process is to the rest: how latents are noised, what the network is asked
for.

Shapes: B batch; latents [B, C, h, w].
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from konomi.config.sections import ObjectiveConfig
from konomi.diffusion.noise import Prediction
from konomi.diffusion.random import Rng
from konomi.diffusion.samplers import Sampler


class Process(Protocol):
    """A noise process. Its timesteps are whatever the network reads: whole numbers
    (variance-preserving), or a time from 0, the image, to 1, noise alone (flow matching).
    """

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        ...

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether nothing of the image is left at the last timestep."""
        ...

    def to(self, device: torch.device | str) -> "Process":
        """The same with its tables on a device."""
        ...

    def for_objective(self, objective: ObjectiveConfig, name: str) -> "Process":
        """The process that a recipe asks for. Raises RecipeError for settings that cannot work;
        `name`: the base's.
        """
        ...

    def unused(self, objective: ObjectiveConfig) -> Mapping[str, str]:
        """Settings of `[objective]` that this process does not read: path -> why, in a sentence."""
        ...

    def draw_timesteps(self, rng: Rng, objective: ObjectiveConfig) -> Tensor:
        """[B], from the generators of the samples."""
        ...

    def spread_timesteps(self, count: int, objective: ObjectiveConfig) -> Sequence[float]:
        """Timesteps in the middle of `count` equal stretches of those that are trained: what
        validation measures.
        """
        ...

    def timesteps(self, values: Sequence[float], device: torch.device | str) -> Tensor:
        """[B], in the format that the network and the other functions read."""
        ...

    def timestep_at(self, fraction: float) -> float:
        """The timestep that lies so far from the image (0) to noise (1)."""
        ...

    def fraction_at(self, timesteps_B: Tensor) -> Tensor:
        """How far each timestep is from the image (0) to noise (1), float32 [B]."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """z_t from z_0."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the network should predict."""
        ...

    def pred_original_sample(
        self, model_output: Tensor, noisy_latents: Tensor, timesteps_B: Tensor
    ) -> Tensor:
        """The network's idea of z_0."""
        ...

    def loss_weights(self, timesteps_B: Tensor, objective: ObjectiveConfig) -> Tensor | None:
        """Weight of each sample, [B], or None for all ones."""
        ...

    def sampler(self, name: str, *, num_steps: int, strength: float = 1.0) -> Sampler:
        """A sampler ready for one batch; `strength` below 1 leaves out the first, noisiest steps.

        Raises RecipeError for one that does not know this process, naming those that do.
        """
        ...

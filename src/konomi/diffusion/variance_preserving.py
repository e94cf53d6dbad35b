"""Stable Diffusion's process: z_t = alpha_t z_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1, in
whole timesteps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from konomi.config.generation import SamplerName
from konomi.config.sections import ObjectiveConfig, TimestepConfig
from konomi.diffusion import noise
from konomi.diffusion.noise import NoiseSchedule, Prediction
from konomi.diffusion.random import Rng
from konomi.diffusion.samplers import Sampler, make_sampler
from konomi.errors import RecipeError


@dataclass(frozen=True, slots=True)
class VariancePreserving:
    """Implements `konomi.diffusion.process.Process`."""

    schedule: NoiseSchedule
    prediction: Prediction

    @property
    def ends_in_pure_noise(self) -> bool:
        return self.schedule.ends_in_pure_noise

    def to(self, device: torch.device | str) -> "VariancePreserving":
        return replace(self, schedule=self.schedule.to(device))

    def for_objective(self, objective: ObjectiveConfig, name: str) -> "VariancePreserving":
        if objective.weighting == "cosmap":
            raise RecipeError(
                f'objective.weighting is "cosmap", which is for flow matching; {name} has another '
                "noise process. Take "
                '"min_snr", "debiased" or "none".'
            )
        if not objective.zero_terminal_snr:
            return self
        if self.prediction == "epsilon":
            raise RecipeError(
                f"objective.zero_terminal_snr is on, but {name} predicts noise (epsilon), which is "
                "undefined where nothing but noise is left. Switch it off, or take a v-prediction "
                "base."
            )
        # A run has asked its base already; this is for those who use the loss by itself.
        return replace(self, schedule=noise.zero_terminal_snr(self.schedule))

    def unused(self, objective: ObjectiveConfig) -> Mapping[str, str]:
        reason = "only bases of flow matching read it."
        return {f"objective.timesteps.{name}": reason for name in TimestepConfig.__slots__}

    def draw_timesteps(self, rng: Rng, objective: ObjectiveConfig) -> Tensor:
        return rng.integers(objective.min_timestep, objective.max_timestep + 1)

    def spread_timesteps(self, count: int, objective: ObjectiveConfig) -> Sequence[int]:
        low = objective.min_timestep
        width = (objective.max_timestep - low + 1) / count
        return [int(low + (index + 0.5) * width) for index in range(count)]

    def timesteps(self, values: Sequence[float], device: torch.device | str) -> Tensor:
        return torch.tensor([int(value) for value in values], dtype=torch.int64, device=device)

    def timestep_at(self, fraction: float) -> int:
        return min(round(fraction * self.schedule.num_timesteps), self.schedule.num_timesteps - 1)

    def fraction_at(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B.float() / (self.schedule.num_timesteps - 1)

    def add_noise(self, latents: Tensor, noise_: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise.add_noise(self.schedule, latents, noise_, timesteps_B)

    def target(self, latents: Tensor, noise_: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise.target(self.schedule, self.prediction, latents, noise_, timesteps_B)

    def pred_original_sample(
        self, model_output: Tensor, noisy_latents: Tensor, timesteps_B: Tensor
    ) -> Tensor:
        return noise.pred_original_sample(
            self.schedule, self.prediction, model_output, noisy_latents, timesteps_B
        )

    def loss_weights(self, timesteps_B: Tensor, objective: ObjectiveConfig) -> Tensor | None:
        kind = objective.weighting
        assert kind != "cosmap"  # Refused by `for_objective`.
        return noise.loss_weights(
            self.schedule, self.prediction, timesteps_B, kind=kind, gamma=objective.snr_gamma
        )

    def sampler(self, name: str, *, num_steps: int, strength: float = 1.0) -> Sampler:
        return make_sampler(
            cast(SamplerName, name),
            self.schedule,
            self.prediction,
            num_steps=num_steps,
            strength=strength,
        )

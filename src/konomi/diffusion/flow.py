"""Flow matching along straight lines (Lipman et al. 2023; Liu et al. 2023; Esser et al. 2024,
"SD3").

z_t = (1 - t) z_0 + t eps for a time t from 0, the image, to 1, noise alone; the network is asked
for the velocity dz_t / dt = eps - z_0. Shapes: B batch; latents [B, C, h, w].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from konomi.config.sections import ObjectiveConfig
from konomi.diffusion.noise import Prediction
from konomi.diffusion.random import Rng
from konomi.diffusion.samplers import FLOW_SAMPLERS, Sampler, make_flow_sampler
from konomi.errors import RecipeError

_GRAINS = 1000
"""`min_timestep` and `max_timestep` count thousandths, as every trainer of such models does."""


@dataclass(frozen=True, slots=True)
class FlowMatching:
    """Implements `konomi.diffusion.process.Process`."""

    shift: float = 1.0
    """Of the base: how much more of the time is spent where there is much noise (Esser et al.
    2024, equation 23)."""
    distribution: str = "logit_normal"
    """Of the timesteps in training, where the recipe leaves it open."""

    @property
    def prediction(self) -> Prediction:
        return "flow"

    @property
    def ends_in_pure_noise(self) -> bool:
        return True

    def to(self, device: torch.device | str) -> "FlowMatching":
        return self

    def for_objective(self, objective: ObjectiveConfig, name: str) -> "FlowMatching":
        if objective.weighting in ("min_snr", "debiased"):
            raise RecipeError(
                f'objective.weighting is "{objective.weighting}", which is for a '
                f"variance-preserving process; {name} "
                'is a base of flow matching. Take "cosmap" or "none".'
            )
        if objective.zero_terminal_snr:
            raise RecipeError(
                f"objective.zero_terminal_snr is on, but {name} is a base of flow matching, which "
                "ends in pure noise anyway. Switch it off."
            )
        return self

    def unused(self, objective: ObjectiveConfig) -> Mapping[str, str]:
        if self._distribution(objective) == "logit_normal":
            return {}
        reason = 'only objective.timesteps.distribution = "logit_normal" reads it.'
        return {"objective.timesteps.mean": reason, "objective.timesteps.std": reason}

    def draw_timesteps(self, rng: Rng, objective: ObjectiveConfig) -> Tensor:
        """Float32 [B]: uniform, or logit-normal (Esser et al. 2024, equation 19); then shifted,
        within the bounds.
        """
        if self._distribution(objective) == "uniform":
            share = rng.uniform()
        else:
            settings = objective.timesteps
            share = torch.sigmoid(settings.mean + settings.std * rng.normal((1,))[:, 0])
        return self._between(shifted(share, objective.timesteps.shift or self.shift), objective)

    def spread_timesteps(self, count: int, objective: ObjectiveConfig) -> Sequence[float]:
        low, high = _bounds(objective)
        return [low + (index + 0.5) / count * (high - low) for index in range(count)]

    def timesteps(self, values: Sequence[float], device: torch.device | str) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)

    def timestep_at(self, fraction: float) -> float:
        return fraction

    def fraction_at(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B.float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        t = _per_image(timesteps_B)
        return (1 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise - latents

    def pred_original_sample(
        self, model_output: Tensor, noisy_latents: Tensor, timesteps_B: Tensor
    ) -> Tensor:
        return noisy_latents - _per_image(timesteps_B) * model_output

    def loss_weights(self, timesteps_B: Tensor, objective: ObjectiveConfig) -> Tensor | None:
        """cosmap: 2 / (pi (1 - 2 t + 2 t^2)), the density that makes the log-SNR follow a cosine
        (Esser et al. 2024, section 3.1 and appendix B.2).
        """
        if objective.weighting == "none":
            return None
        t = timesteps_B.float()
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))

    def sampler(self, name: str, *, num_steps: int, strength: float = 1.0) -> Sampler:
        if name not in FLOW_SAMPLERS:
            raise RecipeError(
                f"sampler {name} does not know flow matching, and this base is of that kind. Take "
                f"one of {', '.join(FLOW_SAMPLERS)}."
            )
        return make_flow_sampler(name, shift=self.shift, num_steps=num_steps, strength=strength)

    def _distribution(self, objective: ObjectiveConfig) -> str:
        chosen = objective.timesteps.distribution
        return self.distribution if chosen == "auto" else chosen

    def _between(self, share: Tensor, objective: ObjectiveConfig) -> Tensor:
        low, high = _bounds(objective)
        return low + (high - low) * share


def shifted(share: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: s t / (1 + (s - 1) t) (Esser et al. 2024, equation 23)."""
    return shift * share / (1 + (shift - 1) * share)


def _bounds(objective: ObjectiveConfig) -> tuple[float, float]:
    return objective.min_timestep / _GRAINS, (objective.max_timestep + 1) / _GRAINS


def _per_image(timesteps_B: Tensor) -> Tensor:
    return timesteps_B.view(-1, 1, 1, 1)

"""The noise process and what the denoiser predicts.

z_t = alpha_t z_0 + sigma_t eps (Ho et al. 2020; Salimans & Ho 2022 for v). Shapes: B batch;
latents [B, C, h, w].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "sample", "flow"]
"""What the network predicts. `flow`: the velocity eps - z_0 of flow matching, see
`konomi.diffusion.flow`."""


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """A variance-preserving process in discrete time."""

    alphas_cumprod: Tensor
    """alpha_t^2, float32 [num_timesteps], falling."""

    @property
    def num_timesteps(self) -> int:
        return self.alphas_cumprod.shape[0]

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether the last timestep has a signal-to-noise ratio of zero: samplers have to begin
        exactly there, and a prediction of epsilon says nothing (Lin et al. 2023).
        """
        return float(self.alphas_cumprod[-1]) == 0.0

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def alpha_sigma(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, [B, 1, 1, 1]."""
        squared = self.alphas_cumprod[timesteps_B].view(-1, 1, 1, 1)
        return squared.sqrt(), (1 - squared).sqrt()

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_t^2 / sigma_t^2, [B]."""
        squared = self.alphas_cumprod[timesteps_B]
        return squared / (1 - squared)


def scaled_linear_schedule(
    start: float = 0.00085, end: float = 0.012, num_timesteps: int = 1000
) -> NoiseSchedule:
    """Stable Diffusion's schedule: betas whose square roots are evenly spaced (Rombach et al.
    2022).
    """
    betas = torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float32) ** 2
    return NoiseSchedule(torch.cumprod(1 - betas, dim=0))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shift and scale alpha_t so that the last timestep is pure noise (Lin et al. 2023, algorithm
    1).

    A schedule that ends so already is given back as it is, bit for bit.
    """
    if schedule.ends_in_pure_noise:
        return schedule
    alphas = schedule.alphas_cumprod.sqrt()
    first, last = alphas[0], alphas[-1]
    return NoiseSchedule(((alphas - last) * first / (first - last)) ** 2)


def add_noise(
    schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps_B: Tensor
) -> Tensor:
    """z_t from z_0."""
    alpha, sigma = schedule.alpha_sigma(timesteps_B)
    return alpha * latents + sigma * noise


def target(
    schedule: NoiseSchedule,
    prediction: Prediction,
    latents: Tensor,
    noise: Tensor,
    timesteps_B: Tensor,
) -> Tensor:
    """What the denoiser should predict."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return latents
    alpha, sigma = schedule.alpha_sigma(timesteps_B)
    return alpha * noise - sigma * latents


def pred_original_sample(
    schedule: NoiseSchedule,
    prediction: Prediction,
    model_output: Tensor,
    noisy_latents: Tensor,
    timesteps_B: Tensor,
) -> Tensor:
    """The denoiser's idea of z_0."""
    alpha, sigma = schedule.alpha_sigma(timesteps_B)
    if prediction == "epsilon":
        return (noisy_latents - sigma * model_output) / alpha
    if prediction == "sample":
        return model_output
    return alpha * noisy_latents - sigma * model_output


def loss_weights(
    schedule: NoiseSchedule,
    prediction: Prediction,
    timesteps_B: Tensor,
    *,
    kind: Literal["none", "min_snr", "debiased"],
    gamma: float = 5.0,
) -> Tensor | None:
    """Weight of each sample, [B], or None for all ones.

    min_snr (Hang et al. 2023, section 3.4): min(SNR, gamma) times the weight that turns the loss
    into one on z_0, which is 1 / SNR for epsilon, 1 / (SNR + 1) for v, 1 for sample.
    debiased (Yu et al. 2023): 1 / sqrt(SNR) for epsilon, the same loss on z_0 for sample; 1 / (SNR
    + 1) for v, as sd-scripts has it. SNR is capped at 1000.
    """
    if kind == "none":
        return None
    snr = schedule.snr(timesteps_B)
    if kind == "min_snr":
        if prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)  # Also right for a terminal SNR of zero.
        capped = snr.clamp(max=gamma)
        return capped / (snr + 1) if prediction == "v" else capped
    snr = snr.clamp(max=1000.0)
    if prediction == "v":
        return 1 / (snr + 1)
    return 1 / snr.sqrt() if prediction == "epsilon" else snr.sqrt()

"""Samplers: from noise to latents in few steps, by diffusers' schedulers over konomi's own noise process.

Shapes: B batch; latents [B, C, h, w].
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from konomi.diffusion.noise import NoiseSchedule, Prediction
from konomi.errors import ModelError, RecipeError

SamplerName = Literal["ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "pndm"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)

_PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
_SMALLEST = 2.0**-24
"""Stands for a terminal alpha^2 of zero, which would be an infinite noise level to the samplers that divide by it."""


class Sampler:
    """One run of a sampler; it remembers earlier steps, so every batch of images takes a new one."""

    def __init__(self, scheduler: Any, num_steps: int, strength: float = 1.0) -> None:
        """`strength` below 1 leaves out the first, noisiest steps. Raises RecipeError where no step is left."""
        scheduler.set_timesteps(num_steps)
        skipped = num_steps - min(int(num_steps * strength), num_steps)
        if skipped == num_steps:
            raise RecipeError(
                f"strength is {strength:g}; of {num_steps} steps that leaves none. Raise strength or steps."
            )
        self.scheduler = scheduler
        self.timesteps: Tensor = scheduler.timesteps[skipped:]
        """On the CPU, falling; fractional for some samplers. `pndm` evaluates one more than `num_steps`."""
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)

    def first_latents(self, noise: Tensor) -> Tensor:
        """Noise of the first level."""
        return noise * float(self.scheduler.init_noise_sigma)

    def add_noise(self, latents: Tensor, noise: Tensor, step: int = 0) -> Tensor:
        """Latents at the level where a step begins."""
        timesteps = self.timesteps[step : step + 1].repeat(len(latents)).to(latents.device)
        noisy: Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """What the denoiser reads in a step; call once before `step`."""
        scaled: Tensor = self.scheduler.scale_model_input(latents, self.timesteps[step])
        return scaled

    def step(self, answer: Tensor, step: int, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next latents from the denoiser's answer. Samplers that add noise draw each image's from its generator."""
        chance = {"generator": list(generators)} if self.adds_noise else {}
        following: Tensor = self.scheduler.step(answer, self.timesteps[step], latents, return_dict=False, **chance)[0]
        return following

    @property
    def adds_noise(self) -> bool:
        return type(self.scheduler).__name__ == "EulerAncestralDiscreteScheduler"


def make_sampler(
    name: SamplerName, schedule: NoiseSchedule, prediction: Prediction, *, num_steps: int, strength: float = 1.0
) -> Sampler:
    """A sampler ready for one batch. Settings are those of Stable Diffusion's own configurations.

    Raises RecipeError for an unknown name, ModelError where the sampler cannot use the prediction.
    """
    if name not in SAMPLERS:
        raise RecipeError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}.")
    if name == "pndm" and prediction == "sample":
        raise ModelError("sampler pndm cannot be used with a base that predicts the clean image. Take ddim.")
    with warnings.catch_warnings():
        # diffusers turns tensors into arrays in a way that numpy 2 announces the end of.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        return Sampler(_scheduler(name, schedule, prediction), num_steps, strength)


def _scheduler(name: SamplerName, schedule: NoiseSchedule, prediction: Prediction) -> Any:
    import diffusers

    alphas_cumprod = schedule.alphas_cumprod.detach().to("cpu", torch.float64)
    settings: dict[str, Any] = {
        "num_train_timesteps": schedule.num_timesteps,
        "trained_betas": _betas(alphas_cumprod).tolist(),
        "prediction_type": _PREDICTION_TYPES[prediction],
        "steps_offset": 1,
    }
    # A process that ends in pure noise has to be sampled from its very last timestep (Lin et al. 2023, section 3.3).
    if alphas_cumprod[-1] < 1e-5:
        settings |= {"timestep_spacing": "trailing"}
    elif name in ("ddim", "pndm"):
        settings |= {"timestep_spacing": "leading"}
    else:
        settings |= {"timestep_spacing": "linspace"}
    if name == "ddim":
        return diffusers.DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False)
    if name == "pndm":
        return diffusers.PNDMScheduler(**settings, skip_prk_steps=True, set_alpha_to_one=False)
    if name == "euler":
        return diffusers.EulerDiscreteScheduler(**settings)
    if name == "euler_a":
        return diffusers.EulerAncestralDiscreteScheduler(**settings)
    if name == "unipc":
        return diffusers.UniPCMultistepScheduler(**settings)
    return diffusers.DPMSolverMultistepScheduler(**settings, use_karras_sigmas=name == "dpmpp_2m_karras")


def _betas(alphas_cumprod: Tensor) -> Tensor:
    """beta_t = 1 - alpha_t^2 / alpha_(t-1)^2."""
    bounded = alphas_cumprod.clamp(min=_SMALLEST)
    previous = torch.cat([torch.ones(1, dtype=bounded.dtype), bounded[:-1]])
    return 1 - bounded / previous

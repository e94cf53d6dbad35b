"""Samplers: from noise to latents in few steps. The steps themselves are in
`konomi.diffusion.solvers`.

Shapes: B batch; latents [B, C, h, w].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from konomi.config.generation import SAMPLERS, SamplerName
from konomi.diffusion import solvers
from konomi.diffusion.noise import NoiseSchedule, Prediction
from konomi.diffusion.solvers import Run, Solver
from konomi.diffusion.timesteps import (
    Levels,
    at_timesteps,
    bounded,
    evaluate,
    karras,
    leading,
    linspace,
    linspace_above_zero,
    of_process,
    skip,
    straight,
    trailing,
)
from konomi.errors import ModelError, RecipeError


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a name stands for."""

    solver: Solver
    spacing: Literal["leading", "linspace", "linspace_above_zero", "karras"]
    exploding: bool = False
    """Latents are held as z_t / alpha_t, which grows with the noise."""
    adds_noise: bool = False


_KINDS: dict[SamplerName, _Kind] = {
    "ddim": _Kind(solvers.ddim, "leading"),
    "euler": _Kind(solvers.euler, "linspace", exploding=True),
    "euler_a": _Kind(solvers.euler_ancestral, "linspace", exploding=True, adds_noise=True),
    "heun": _Kind(solvers.heun, "linspace", exploding=True),
    "lms": _Kind(solvers.lms, "linspace", exploding=True),
    "dpmpp_2m": _Kind(solvers.dpmpp_2m, "linspace_above_zero"),
    "dpmpp_2m_karras": _Kind(solvers.dpmpp_2m, "karras"),
    "dpmpp_2m_sde": _Kind(solvers.dpmpp_2m_sde, "linspace_above_zero", adds_noise=True),
    "dpmpp_2m_sde_karras": _Kind(solvers.dpmpp_2m_sde, "karras", adds_noise=True),
    "unipc": _Kind(solvers.unipc, "linspace_above_zero"),
    "pndm": _Kind(solvers.pndm, "leading"),
}


FLOW_SAMPLERS: tuple[SamplerName, ...] = ("euler", "heun", "dpmpp_2m")
"""Those that know flow matching: the first two follow any slope, the third reads alpha_t and
sigma_t of the process."""


class Sampler:
    """One run of a sampler; it remembers earlier steps, so every batch of images takes a new
    one.
    """

    def __init__(
        self, kind: _Kind, levels: Levels, first_sigma: float, prediction: Prediction
    ) -> None:
        self._kind = kind
        self._levels = levels
        self._first_sigma = first_sigma
        self._run = Run(levels, prediction, self._draw)
        self._generators: Sequence[torch.Generator] = ()
        self._like: Tensor | None = None
        self.timesteps = levels.timesteps
        """Of each evaluation of the denoiser, on the CPU, falling; fractional for some samplers."""
        self.steps = levels.steps
        """The step, from 0, that each evaluation belongs to."""

    @property
    def adds_noise(self) -> bool:
        return self._kind.adds_noise

    def first_latents(self, noise: Tensor) -> Tensor:
        """Noise of the first level of all, also where strength leaves levels out."""
        return noise * self._first_sigma if self._kind.exploding else noise

    def add_noise(self, latents: Tensor, noise: Tensor, step: int = 0) -> Tensor:
        """Latents at the level where an evaluation begins."""
        if self._kind.exploding:
            return latents + noise * self._levels.sigmas[step]
        if self._kind.spacing == "leading":
            a = self._levels.alphas_cumprod[step]
            return a**0.5 * latents + (1 - a) ** 0.5 * noise
        alpha, sigma = solvers.alpha_sigma(self._run, step)
        return alpha * latents + sigma * noise

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """What the denoiser reads in an evaluation."""
        return (
            latents / ((self._levels.sigmas[step] ** 2 + 1) ** 0.5)
            if self._kind.exploding
            else latents
        )

    def step(
        self,
        model_output: Tensor,
        step: int,
        latents: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The next latents from the denoiser's output for an evaluation; call it for each in order.

        Samplers that add noise draw each image's from its generator.
        """
        self._generators, self._like = generators, model_output
        return self._kind.solver(self._run, step, latents, model_output)

    def _draw(self) -> Tensor:
        assert self._like is not None
        shape = (1, *self._like.shape[1:])
        drawn = [
            torch.randn(shape, generator=generator, device=generator.device)
            for generator in self._generators
        ]
        return torch.cat(drawn).to(self._like.device)


def make_sampler(
    name: SamplerName,
    schedule: NoiseSchedule,
    prediction: Prediction,
    *,
    num_steps: int,
    strength: float = 1.0,
) -> Sampler:
    """A sampler ready for one batch. Settings are those of Stable Diffusion's own configurations.
    `strength` below 1 leaves out the first, noisiest steps.

    Raises RecipeError for an unknown name or where no step is left, ModelError where the sampler
    cannot use the prediction.
    """
    if name not in SAMPLERS:
        raise RecipeError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}.")
    if name == "pndm" and prediction == "sample":
        raise ModelError(
            "sampler pndm cannot be used with a base that predicts the clean image. Take ddim."
        )
    if num_steps > schedule.num_timesteps:
        raise RecipeError(
            f"steps is {num_steps}; this base's noise has only {schedule.num_timesteps} levels."
        )
    skipped = _skipped(num_steps, strength)
    kind = _KINDS[name]
    levels = _levels(name, kind, schedule, prediction, num_steps)
    first_sigma = float(levels.sigmas[0])
    return Sampler(kind, _evaluations(name, skip(levels, skipped)), first_sigma, prediction)


def make_flow_sampler(
    name: SamplerName, *, shift: float, num_steps: int, strength: float = 1.0
) -> Sampler:
    """One of `FLOW_SAMPLERS` for flow matching, over times from 1 to 0 in equal steps, then
    shifted (as diffusers' pipelines of FLUX, Qwen-Image and Z-Image have them). Arguments and
    errors as for `make_sampler`.
    """
    levels = skip(straight(num_steps, shift), _skipped(num_steps, strength))
    kind = replace(_KINDS[name], exploding=False)
    return Sampler(kind, _evaluations(name, levels), 1.0, "flow")


def _skipped(num_steps: int, strength: float) -> int:
    """Steps left out at the beginning. Raises RecipeError where none is left."""
    skipped = num_steps - min(int(num_steps * strength), num_steps)
    if skipped == num_steps:
        raise RecipeError(
            f"strength is {strength:g}; of {num_steps} steps that leaves none. Raise strength or "
            "steps."
        )
    return skipped


def _levels(
    name: SamplerName, kind: _Kind, schedule: NoiseSchedule, prediction: Prediction, num_steps: int
) -> Levels:
    count = schedule.num_timesteps
    table = bounded(schedule.alphas_cumprod)
    if name == "ddim" and prediction != "epsilon":  # It never divides by alpha.
        table = schedule.alphas_cumprod.detach().to("cpu", torch.float32)
    if kind.spacing == "karras":
        return karras(num_steps, table)
    # A process that ends in pure noise has to be sampled from its very last timestep (Lin et al.
    # 2023, section 3.3).
    from_the_end = bool(schedule.alphas_cumprod[-1] < 1e-5)
    if kind.spacing == "leading":
        return of_process(
            trailing(count, num_steps) if from_the_end else leading(count, num_steps), table
        )
    if from_the_end:
        return at_timesteps(trailing(count, num_steps), table)
    spaced = (
        linspace(count, num_steps)
        if kind.spacing == "linspace"
        else linspace_above_zero(count, num_steps)
    )
    return at_timesteps(spaced, table)


def _evaluations(name: SamplerName, levels: Levels) -> Levels:
    """Most samplers evaluate the denoiser once for each level."""
    count = len(levels.timesteps)
    if name == "heun":
        order = (0, *(i for level in range(1, count) for i in (level, level)))
        return evaluate(levels, order, tuple(i // 2 for i in range(len(order))))
    if name == "pndm" and count > 1:
        return evaluate(levels, (0, 1, *range(1, count)), (0, 0, *range(1, count)))
    return levels

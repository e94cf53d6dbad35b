"""Which noise levels a sampler visits.

Two ways to name a level: timestep t of the noise process, and sigma = sigma_t / alpha_t, the noise
beside a signal of size one (Karras et al. 2022). Spacing: Lin et al. 2023, table 2. The arithmetic
is diffusers', down to the precision.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SMALLEST = 2.0**-24
"""Stands for a terminal alpha^2 of zero, which would be an infinite noise level to the samplers
that divide by it."""
_RHO = 7.0
"""Karras et al. 2022, table 1."""

Floats = NDArray[np.float64] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Levels:
    """What the denoiser is evaluated at, in order. E evaluations; on the CPU."""

    timesteps: Tensor
    """[E], falling; whole numbers, but fractional for samplers that place them between two trained
    ones."""
    sigmas: Tensor
    """[E + 1], float32: of each evaluation, then where the last step ends."""
    alphas_cumprod: Tensor
    """[E + 1], float32: the same levels as alpha_t^2."""
    steps: tuple[int, ...]
    """The step, from 0, that each evaluation belongs to: some samplers need two for a step."""


def bounded(alphas_cumprod: Tensor) -> Tensor:
    """float32 on the CPU, without a zero at the end."""
    table = alphas_cumprod.detach().to("cpu", torch.float32, copy=True)
    if table[-1] < _SMALLEST:
        table[-1] = _SMALLEST
    return table


def leading(count: int, num_steps: int, offset: int = 1) -> NDArray[np.int64]:
    """Falling multiples of the step, moved up by `offset`: Stable Diffusion's own for DDIM and
    PLMS.
    """
    rising = np.arange(num_steps) * (count // num_steps) + offset
    return np.ascontiguousarray(np.minimum(rising[::-1], count - 1), dtype=np.int64)


def trailing(count: int, num_steps: int) -> NDArray[np.int64]:
    """Falling from the very last timestep, without which a process that ends in pure noise begins
    at the wrong level (Lin et al. 2023, section 3.3).
    """
    return (np.arange(count, 0, -count / num_steps)[:num_steps].round() - 1).astype(np.int64)


def linspace(count: int, num_steps: int) -> NDArray[np.float32]:
    """Evenly from the last timestep to 0, both included; between trained ones too."""
    return np.linspace(0, count - 1, num_steps, dtype=np.float32)[::-1].copy()


def linspace_above_zero(count: int, num_steps: int) -> NDArray[np.int64]:
    """Evenly from the last timestep towards 0, which is left to the end of the last step."""
    return np.linspace(0, count - 1, num_steps + 1).round()[::-1][:-1].astype(np.int64)


def at_timesteps(
    timesteps: NDArray[np.int64] | NDArray[np.float32], alphas_cumprod: Tensor
) -> Levels:
    """Levels between trained ones are interpolated in sigma; the end is no noise at all."""
    table = _sigma_table(alphas_cumprod)
    sigmas = np.interp(timesteps, np.arange(len(table)), table)
    return _from_sigmas(torch.from_numpy(timesteps), sigmas)


def karras(num_steps: int, alphas_cumprod: Tensor) -> Levels:
    """Levels dense where there is little noise (Karras et al. 2022, equation 5); timesteps are the
    nearest trained.
    """
    table = _sigma_table(alphas_cumprod)
    low, high = float(table[0]) ** (1 / _RHO), float(table[-1]) ** (1 / _RHO)
    sigmas = (high + np.linspace(0, 1, num_steps) * (low - high)) ** _RHO
    timesteps = (
        np.interp(np.log(sigmas), np.log(table), np.arange(len(table))).round().astype(np.int64)
    )
    return _from_sigmas(torch.from_numpy(timesteps), sigmas)


def of_process(timesteps: NDArray[np.int64], alphas_cumprod: Tensor) -> Levels:
    """Trained levels, that of the first timestep at the end: what is left there is not taken away
    (Stable Diffusion's `set_alpha_to_one: false`).
    """
    visited = alphas_cumprod[torch.from_numpy(np.append(timesteps, 0))]
    return Levels(
        timesteps=torch.from_numpy(timesteps),
        sigmas=((1 - visited) / visited) ** 0.5,
        alphas_cumprod=visited,
        steps=tuple(range(len(timesteps))),
    )


def straight(num_steps: int, shift: float) -> Levels:
    """Flow matching: times 1 - i / n, shifted towards noise (Esser et al. 2024, equation 23);
    sigma_t is t itself, and alpha_t is 1 - t.
    """
    times = np.linspace(1, 1 / num_steps, num_steps)
    sigmas = torch.from_numpy(
        np.append(shift * times / (1 + (shift - 1) * times), 0).astype(np.float32)
    )
    return Levels(sigmas[:-1], sigmas, (1 - sigmas) ** 2, tuple(range(num_steps)))


def skip(levels: Levels, count: int) -> Levels:
    """Without the first, noisiest levels."""
    return Levels(
        levels.timesteps[count:], levels.sigmas[count:], levels.alphas_cumprod[count:],
        tuple(step - count for step in levels.steps[count:]),
    )  # fmt: skip


def evaluate(levels: Levels, order: tuple[int, ...], steps: tuple[int, ...]) -> Levels:
    """Evaluations at the levels of these indices, as parts of these steps."""
    index = torch.tensor(order)
    ended = torch.cat([index, torch.tensor([len(levels.timesteps)])])
    return Levels(
        levels.timesteps[index], levels.sigmas[ended], levels.alphas_cumprod[ended], steps
    )


def _sigma_table(alphas_cumprod: Tensor) -> NDArray[np.float32]:
    table: NDArray[np.float32] = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()
    return table


def _from_sigmas(timesteps: Tensor, sigmas: Floats) -> Levels:
    ended = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
    return Levels(timesteps, ended, 1 / (ended**2 + 1), tuple(range(len(timesteps))))

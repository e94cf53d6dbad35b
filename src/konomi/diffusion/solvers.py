"""One step of each sampler, as a short function after its paper; the arithmetic is that of
diffusers' schedulers.

x is the latents of the level where the step begins. `variance_preserving` solvers hold z_t =
alpha_t z_0 + sigma_t eps, the others ("exploding") z_t / alpha_t = z_0 + sigma eps; of flow
matching z_t = (1 - t) z_0 + t eps, where sigma_t is t. Indices: i is the evaluation, i + 1 the
level that comes next.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.diffusion.timesteps import Levels


@dataclass(slots=True)
class Run:
    """What a solver knows besides the latents: one for each batch of images."""

    levels: Levels
    prediction: Prediction
    draw: Callable[[], Tensor]
    """Fresh noise of the latents' shape, for solvers of stochastic equations."""
    earlier: list[Tensor] = field(default_factory=list)
    """Estimates or slopes of earlier evaluations, the newest last."""
    started: Tensor | None = None
    """Latents where the step under way, or the last one, began."""


Solver = Callable[[Run, int, Tensor, Tensor], Tensor]
"""(run, evaluation, latents, the denoiser's output) -> the next latents."""


def ddim(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """Song et al. 2021, equation 12, with eta = 0."""
    a, following = run.levels.alphas_cumprod[i], run.levels.alphas_cumprod[i + 1]
    alpha, sigma = a**0.5, (1 - a) ** 0.5
    if run.prediction == "epsilon":
        denoised, noise = (x - sigma * model_output) / alpha, model_output
    elif run.prediction == "v":
        denoised, noise = alpha * x - sigma * model_output, alpha * model_output + sigma * x
    else:
        denoised, noise = model_output, (x - alpha * model_output) / sigma
    return following**0.5 * denoised + (1 - following) ** 0.5 * noise


def pndm(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """Liu et al. 2022, equations 9 and 12 without Runge-Kutta steps (PLMS): the first step is
    taken twice, the second time with the mean of both ends' noise.
    """
    levels = run.levels
    if i == 1:
        x, begin, end = _taken(run.started), levels.alphas_cumprod[0], levels.alphas_cumprod[1]
    else:
        begin, end = levels.alphas_cumprod[i], levels.alphas_cumprod[i + 1]
    if i == 0:
        run.started = x
    if i != 1:
        run.earlier = [*run.earlier[-3:], model_output]
    e = run.earlier
    if i == 1:
        model_output = (model_output + e[-1]) / 2
    elif len(e) == 2:
        model_output = (3 * e[-1] - e[-2]) / 2
    elif len(e) == 3:
        model_output = (23 * e[-1] - 16 * e[-2] + 5 * e[-3]) / 12
    elif len(e) == 4:
        model_output = (1 / 24) * (55 * e[-1] - 59 * e[-2] + 37 * e[-3] - 9 * e[-4])
    if run.prediction == "v":
        model_output = begin**0.5 * model_output + (1 - begin) ** 0.5 * x
    scale = begin * (1 - end) ** 0.5 + (begin * (1 - begin) * end) ** 0.5
    return (end / begin) ** 0.5 * x - (end - begin) * model_output / scale


def euler(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """Karras et al. 2022, algorithm 1 without its correction: along the slope dx/dsigma."""
    sigma, following = run.levels.sigmas[i], run.levels.sigmas[i + 1]
    return x + _slope(run, sigma, x, model_output) * (following - sigma)


def euler_ancestral(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """Euler's step to below the next level, then fresh noise up to it (Song et al. 2021's eta = 1,
    in sigma).
    """
    sigma, following = run.levels.sigmas[i], run.levels.sigmas[i + 1]
    up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
    down = (following**2 - up**2) ** 0.5
    return x + _slope(run, sigma, x, model_output) * (down - sigma) + run.draw() * up


def heun(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """Karras et al. 2022, algorithm 1: Euler's step, repeated with the mean of both ends'
    slopes.
    """
    sigmas = run.levels.sigmas
    if not run.earlier:
        slope = _slope(run, sigmas[i], x, model_output)
        if i + 1 < len(run.levels.timesteps):  # The last step ends where no slope can be told.
            run.earlier, run.started = [slope], x
        return x + slope * (sigmas[i + 1] - sigmas[i])
    (first,) = run.earlier
    run.earlier = []
    mean = (first + _slope(run, sigmas[i], x, model_output)) / 2
    return _taken(run.started) + mean * (sigmas[i] - sigmas[i - 1])


def lms(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """Linear multistep of order 4 (Adams-Bashforth): the polynomial through the latest slopes,
    integrated exactly.
    """
    run.earlier = [*run.earlier[-3:], _slope(run, run.levels.sigmas[i], x, model_output)]
    visited = [float(sigma) for sigma in run.levels.sigmas[i + 1 - len(run.earlier) : i + 2]]
    for slope, weight in zip(run.earlier, _integrals(visited[:-1], visited[-2], visited[-1])):
        x = x + weight * slope
    return x


def dpmpp_2m(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2); the first and the last step are of first
    order.
    """
    alpha, sigma, begin, h = _interval(run, i)
    denoised = _estimated(run, i, x, model_output)
    grown = alpha * (torch.exp(-h) - 1.0)
    following = (sigma / begin) * x - grown * denoised
    if _has_second_order(run, i):
        following = following - 0.5 * grown * _difference(run, i, h)
    return following


def dpmpp_2m_sde(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, appendix)."""
    alpha, sigma, begin, h = _interval(run, i)
    denoised = _estimated(run, i, x, model_output)
    grown = alpha * (1 - torch.exp(-2.0 * h))
    following = (sigma / begin * torch.exp(-h)) * x + grown * denoised
    if _has_second_order(run, i):
        following = following + 0.5 * grown * _difference(run, i, h)
    return following + sigma * torch.sqrt(1.0 - torch.exp(-2 * h)) * run.draw()


def unipc(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 7 and 8): what an evaluation tells
    first corrects the step that led to it.
    """
    denoised = _denoised_vp(run, i, x, model_output)
    if run.started is not None:
        x = _unipc_step(run, i - 1, _taken(run.started), order=min(2, i), after=denoised)
    run.earlier = [*run.earlier[-1:], denoised]
    run.started = x
    last = i + 1 == len(run.levels.timesteps)
    return _unipc_step(run, i, x, order=1 if last else min(2, i + 1), after=None)


def _unipc_step(run: Run, i: int, x: Tensor, *, order: int, after: Tensor | None) -> Tensor:
    """From level i to the next; with the estimate made `after` it the corrector, else the
    predictor.
    """
    newest = run.earlier[-1]
    alpha, sigma, begin, h = _interval(run, i)
    grown = torch.expm1(-h)
    following = sigma / begin * x - alpha * grown * newest
    if order == 1 and after is None:
        return following
    ratio = (_log_snr(run, i - 1) - _log_snr(run, i)) / h if order == 2 else None
    if ratio is None:
        assert after is not None
        return following - alpha * grown * (0.5 * (after - newest))
    difference = (run.earlier[-2] - newest) / ratio
    if after is None:
        return following - alpha * grown * (0.5 * difference)
    # The weights make the step exact for estimates that are linear and quadratic in the log-SNR.
    phi = grown / -h - 1
    first, second = phi / grown, 2 * (phi / -h - 0.5) / grown
    weight = (first - second) / (1 - ratio)
    return following - alpha * grown * (weight * difference + (first - weight) * (after - newest))


def _interval(run: Run, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the step from level i to the next: alpha and sigma where it ends, sigma where it begins,
    change of log-SNR.
    """
    (alpha, sigma), (_, begin) = alpha_sigma(run, i + 1), alpha_sigma(run, i)
    return alpha, sigma, begin, _log_snr(run, i + 1) - _log_snr(run, i)


def _estimated(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """The estimate of z_0 at an evaluation, kept with the one before it."""
    denoised = _denoised_vp(run, i, x, model_output)
    run.earlier = [*run.earlier[-1:], denoised]
    return denoised


def _has_second_order(run: Run, i: int) -> bool:
    """Whether two estimates are there, and the step is not the last, which ends where the log-SNR
    is infinite.
    """
    return i + 1 < len(run.levels.timesteps) and len(run.earlier) == 2


def _difference(run: Run, i: int, h: Tensor) -> Tensor:
    """First difference of the two latest estimates, in units of the coming step of log-SNR."""
    ratio = (_log_snr(run, i) - _log_snr(run, i - 1)) / h
    return (1.0 / ratio) * (run.earlier[-1] - run.earlier[-2])


def _slope(run: Run, sigma: Tensor, x: Tensor, model_output: Tensor) -> Tensor:
    """dx/dsigma = (x - denoised) / sigma, in the exploding form; of flow matching what the network
    says.
    """
    if run.prediction == "flow":
        return model_output
    if run.prediction == "epsilon":
        denoised = x - sigma * model_output
    elif run.prediction == "v":
        denoised = model_output * (-sigma / (sigma**2 + 1) ** 0.5) + (x / (sigma**2 + 1))
    else:
        denoised = model_output
    return (x - denoised) / sigma


def _denoised_vp(run: Run, i: int, x: Tensor, model_output: Tensor) -> Tensor:
    """The denoiser's idea of z_0, in the variance-preserving form, or that of flow matching."""
    alpha, sigma = alpha_sigma(run, i)
    if run.prediction == "flow":
        return x - sigma * model_output
    if run.prediction == "epsilon":
        return (x - sigma * model_output) / alpha
    return alpha * x - sigma * model_output if run.prediction == "v" else model_output


def alpha_sigma(run: Run, i: int) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of a level."""
    sigma = run.levels.sigmas[i]
    if run.prediction == "flow":
        return 1 - sigma, sigma
    alpha = 1 / ((sigma**2 + 1) ** 0.5)
    return alpha, sigma * alpha


def _log_snr(run: Run, i: int) -> Tensor:
    """lambda_t, half the logarithm of the signal-to-noise ratio."""
    alpha, noise = alpha_sigma(run, i)
    return torch.log(alpha) - torch.log(noise)


def _integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """Of each node's Lagrange polynomial from start to end."""
    weights = []
    for j, node in enumerate(nodes):
        coefficients = [1.0]  # Rising powers of (x - start), which keeps the numbers small.
        for k, other in enumerate(nodes):
            if k != j:
                shifted = [0.0, *coefficients]
                kept = [*coefficients, 0.0]
                coefficients = [
                    (s - (other - start) * c) / (node - other) for s, c in zip(shifted, kept)
                ]
        weights.append(
            sum(c * (end - start) ** (p + 1) / (p + 1) for p, c in enumerate(coefficients))
        )
    return weights


def _taken(latents: Tensor | None) -> Tensor:
    assert latents is not None, "no step is under way"
    return latents

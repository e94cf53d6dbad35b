"""Samplers against diffusers' schedulers, and on the noise process they are given. Whole pictures
against diffusers' pipelines are tested with generation.
"""

import pytest
import torch

from konomi.diffusion.noise import add_noise, scaled_linear_schedule, target
from konomi.diffusion.noise import zero_terminal_snr as zero_terminal_snr_of
from konomi.diffusion.samplers import SAMPLERS, make_sampler
from konomi.errors import ModelError, RecipeError
from twins import diffusers_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCHEDULE = scaled_linear_schedule()


def trajectories(name, prediction, *, num_steps, strength=1.0, zero_terminal_snr=False):
    """Ours and diffusers' latents after each evaluation, with a denoiser that is a smooth function
    of its input.
    """
    schedule = zero_terminal_snr_of(SCHEDULE) if zero_terminal_snr else SCHEDULE
    ours = make_sampler(name, schedule, prediction, num_steps=num_steps, strength=strength)
    theirs = diffusers_scheduler(name, prediction, zero_terminal_snr=zero_terminal_snr)
    theirs.set_timesteps(num_steps)
    skipped = (num_steps - int(num_steps * strength)) * theirs.order
    timesteps = theirs.timesteps[skipped:]
    if name == "pndm" and skipped:
        # diffusers leaves out evaluations here, not levels: from then on it tells its denoiser the
        # wrong level.
        timesteps = ours.timesteps
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(skipped)
    torch.testing.assert_close(ours.timesteps.double(), timesteps.double(), rtol=0, atol=0)
    noise, clean = torch.randn(2, 2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    mixed = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)) / 2

    def denoise(latents, timestep):
        return torch.tanh(torch.einsum("oc,bchw->bohw", mixed, latents) + float(timestep) / 1000)

    a, b = ours.first_latents(noise), noise * float(theirs.init_noise_sigma)
    if skipped:
        a, b = ours.add_noise(clean, noise), theirs.add_noise(clean, noise, timesteps[:1].expand(2))
    pairs = [(a, b)]
    our_chance, their_chance = (
        [torch.Generator().manual_seed(i) for i in range(2)] for _ in range(2)
    )
    chance = {"generator": their_chance} if ours.adds_noise else {}
    for i, timestep in enumerate(timesteps):
        a = ours.step(denoise(ours.model_input(a, i), timestep), i, a, our_chance)
        model_output = denoise(theirs.scale_model_input(b, timestep), timestep)
        b = theirs.step(model_output, timestep, b, return_dict=False, **chance)[0]
        pairs.append((a, b))
    return pairs


BIT_FOR_BIT = [name for name in SAMPLERS if name not in ("lms", "unipc")]
"""lms: diffusers wants SciPy to integrate polynomials. unipc: diffusers solves two equations by a
matrix."""


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lms"])
def test_equals_diffusers(name, prediction):
    if prediction == "sample" and name in ("pndm", "euler_a"):
        pytest.skip("diffusers has no such thing")
    for num_steps in (1, 10, 26):
        for ours, theirs in trajectories(name, prediction, num_steps=num_steps):
            close = {"rtol": 0, "atol": 0} if name in BIT_FOR_BIT else {"rtol": 1e-6, "atol": 1e-6}
            torch.testing.assert_close(ours, theirs, **close)
    for ours, theirs in trajectories(name, prediction, num_steps=20, strength=0.6):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", ["v", "sample"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lms", "heun", "pndm")])
def test_equals_diffusers_from_pure_noise(name, prediction):
    """With the rescaled schedule and trailing timesteps, where diffusers' scheduler has them."""
    if prediction == "sample" and name == "euler_a":
        pytest.skip("diffusers has no such thing")
    for ours, theirs in trajectories(name, prediction, num_steps=20, zero_terminal_snr=True):
        # diffusers rescales betas and multiplies them up again: its levels are off by a few
        # roundings.
        torch.testing.assert_close(ours, theirs, rtol=3e-6, atol=3e-6 * float(theirs.abs().max()))


def test_lms_integrates_a_cubic_slope_exactly():
    """Adams-Bashforth of order 4: for a slope that is a cubic of sigma, x is its integral, from
    the 4th step on.
    """
    sampler = make_sampler("lms", SCHEDULE, "epsilon", num_steps=12)
    sigmas = [float(sampler.add_noise(torch.zeros(1), torch.ones(1), i)) for i in range(12)]
    slope = lambda sigma: 1 - 0.5 * sigma + 0.03 * sigma**2 - 0.002 * sigma**3
    integral = lambda sigma: sigma - 0.25 * sigma**2 + 0.01 * sigma**3 - 0.0005 * sigma**4
    latents = torch.zeros(1, 1, 1, 1)
    visited = []
    for i, sigma in enumerate(sigmas):
        latents = sampler.step(torch.full((1, 1, 1, 1), slope(sigma)), i, latents, [])
        visited.append(float(latents))
    for i in range(3, 12):
        end = sigmas[i + 1] if i < 11 else 0.0
        assert visited[i] - visited[i - 1] == pytest.approx(
            integral(end) - integral(sigmas[i]), abs=1e-5
        )


def sample(name, schedule, prediction, clean, num_steps=20, seed=0):
    """With a denoiser that always knows the clean latents."""
    sampler = make_sampler(name, schedule, prediction, num_steps=num_steps)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(clean))]
    latents = sampler.first_latents(
        torch.cat([torch.randn(1, *clean.shape[1:], generator=g) for g in generators])
    )
    alphas = schedule.alphas_cumprod.clamp(min=2.0**-24)
    for step, timestep in enumerate(sampler.timesteps):
        scaled = sampler.model_input(latents, step)
        # Fractional timesteps of Euler samplers lie between two trained ones.
        low, share = int(timestep), float(timestep) % 1
        high = min(low + 1, 999)
        sigma = torch.lerp(
            ((1 - alphas[low]) / alphas[low]).sqrt(),
            ((1 - alphas[high]) / alphas[high]).sqrt(),
            share,
        )
        alpha = (1 / (1 + sigma**2)).sqrt()
        noise = (scaled - alpha * clean) / (sigma * alpha)
        model_output = {
            "epsilon": noise,
            "v": alpha * noise - sigma * alpha * clean,
            "sample": clean,
        }[prediction]
        latents = sampler.step(model_output, step, latents, generators)
    return latents


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_perfect_denoiser_arrives_at_the_clean_latents(name, prediction):
    clean = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    # ddim and pndm stop at timestep 1's neighbour 0, whose noise is 0.03.
    torch.testing.assert_close(sample(name, SCHEDULE, prediction, clean), clean, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_starts_at_the_last_timestep_and_stays_finite(name):
    schedule = zero_terminal_snr_of(SCHEDULE)
    assert make_sampler(name, schedule, "v", num_steps=10).timesteps[0] == 999
    clean = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sample(name, schedule, "v", clean), clean, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_added_at_the_level_of_the_first_step(name):
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    sampler = make_sampler(name, SCHEDULE, "epsilon", num_steps=10, strength=0.5)
    timestep = sampler.timesteps[0]
    expected = add_noise(SCHEDULE, clean, noise, timestep.round().long()[None])
    given = sampler.model_input(sampler.add_noise(clean, noise), 0)
    torch.testing.assert_close(given, expected, rtol=0, atol=0.02)


def test_only_ancestral_samplers_draw_noise_and_each_image_its_own():
    clean = torch.zeros(2, 4, 3, 3)
    both = sample("euler_a", SCHEDULE, "epsilon", clean + 1, num_steps=3)
    second = sample("euler_a", SCHEDULE, "epsilon", clean[:1] + 1, num_steps=3, seed=1)
    torch.testing.assert_close(both[1:], second)
    drawing = [
        name for name in SAMPLERS if make_sampler(name, SCHEDULE, "epsilon", num_steps=2).adds_noise
    ]
    assert drawing == ["euler_a", "dpmpp_2m_sde", "dpmpp_2m_sde_karras"]


def test_refusals():
    with pytest.raises(RecipeError, match="choose one of ddim"):
        make_sampler("dpm_fast", SCHEDULE, "epsilon", num_steps=2)
    with pytest.raises(RecipeError, match=r"strength is 0.1; of 9 steps that leaves none"):
        make_sampler("ddim", SCHEDULE, "epsilon", num_steps=9, strength=0.1)
    with pytest.raises(ModelError, match="pndm"):
        make_sampler("pndm", SCHEDULE, "sample", num_steps=9)
    with pytest.raises(RecipeError, match="steps is 1001; this base's noise has only 1000 levels"):
        make_sampler("ddim", SCHEDULE, "epsilon", num_steps=1001)


def test_the_target_of_training_is_the_answer_in_sampling():
    """One step of DDIM from the training target at timestep t lands on z at the next timestep."""
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    for prediction in ("epsilon", "v", "sample"):
        sampler = make_sampler("ddim", SCHEDULE, prediction, num_steps=10)
        timestep, following = sampler.timesteps[3:5, None]
        noisy = add_noise(SCHEDULE, clean, noise, timestep)
        model_output = target(SCHEDULE, prediction, clean, noise, timestep)
        stepped = sampler.step(model_output, 3, noisy, [])
        torch.testing.assert_close(
            stepped, add_noise(SCHEDULE, clean, noise, following), rtol=1e-4, atol=1e-4
        )

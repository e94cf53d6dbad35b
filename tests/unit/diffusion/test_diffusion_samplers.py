"""Samplers solve the noise process they are given. That they equal diffusers' pipelines is tested with generation."""

import pytest
import torch

from konomi.diffusion.noise import add_noise, scaled_linear_schedule, target, zero_terminal_snr
from konomi.diffusion.samplers import SAMPLERS, make_sampler
from konomi.errors import ModelError, RecipeError

SCHEDULE = scaled_linear_schedule()


def sample(name, schedule, prediction, clean, num_steps=20, seed=0):
    """With a denoiser that always knows the clean latents."""
    sampler = make_sampler(name, schedule, prediction, num_steps=num_steps)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(clean))]
    latents = sampler.first_latents(torch.cat([torch.randn(1, *clean.shape[1:], generator=g) for g in generators]))
    alphas = schedule.alphas_cumprod.clamp(min=2.0**-24)
    for step, timestep in enumerate(sampler.timesteps):
        scaled = sampler.model_input(latents, step)
        # Fractional timesteps of Euler samplers lie between two trained ones.
        low, share = int(timestep), float(timestep) % 1
        high = min(low + 1, 999)
        sigma = torch.lerp(((1 - alphas[low]) / alphas[low]).sqrt(), ((1 - alphas[high]) / alphas[high]).sqrt(), share)
        alpha = (1 / (1 + sigma**2)).sqrt()
        noise = (scaled - alpha * clean) / (sigma * alpha)
        answer = {"epsilon": noise, "v": alpha * noise - sigma * alpha * clean, "sample": clean}[prediction]
        latents = sampler.step(answer, step, latents, generators)
    return latents


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_perfect_denoiser_arrives_at_the_clean_latents(name, prediction):
    clean = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    # ddim and pndm stop at timestep 1's neighbour 0, whose noise is 0.03.
    torch.testing.assert_close(sample(name, SCHEDULE, prediction, clean), clean, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_starts_at_the_last_timestep_and_stays_finite(name):
    schedule = zero_terminal_snr(SCHEDULE)
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
    drawing = [name for name in SAMPLERS if make_sampler(name, SCHEDULE, "epsilon", num_steps=2).adds_noise]
    assert drawing == ["euler_a"]


def test_refusals():
    with pytest.raises(RecipeError, match="choose one of ddim"):
        make_sampler("heun", SCHEDULE, "epsilon", num_steps=2)
    with pytest.raises(RecipeError, match=r"strength is 0.1; of 9 steps that leaves none"):
        make_sampler("ddim", SCHEDULE, "epsilon", num_steps=9, strength=0.1)
    with pytest.raises(ModelError, match="pndm"):
        make_sampler("pndm", SCHEDULE, "sample", num_steps=9)


def test_the_target_of_training_is_the_answer_in_sampling():
    """One step of DDIM from the training target at timestep t lands on z at the next timestep."""
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    for prediction in ("epsilon", "v", "sample"):
        sampler = make_sampler("ddim", SCHEDULE, prediction, num_steps=10)
        timestep, following = sampler.timesteps[3:5, None]
        noisy = add_noise(SCHEDULE, clean, noise, timestep)
        answer = target(SCHEDULE, prediction, clean, noise, timestep)
        stepped = sampler.step(answer, 3, noisy, [])
        torch.testing.assert_close(stepped, add_noise(SCHEDULE, clean, noise, following), rtol=1e-4, atol=1e-4)

"""The noise process against diffusers, and against identities that hold for any schedule."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from konomi.diffusion.noise import (
    add_noise,
    loss_weights,
    pred_original_sample,
    scaled_linear_schedule,
    target,
    zero_terminal_snr,
)

STEPS = torch.tensor([0, 1, 17, 500, 998, 999])


@pytest.fixture(scope="module")
def schedule():
    return scaled_linear_schedule()


@pytest.fixture(scope="module")
def reference():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, 3, 5, generator=generator), torch.randn(
        6, 4, 3, 5, generator=generator
    )


def test_schedule_and_noising_equal_diffusers(schedule, reference, pair):
    latents, noise = pair
    torch.testing.assert_close(schedule.alphas_cumprod, reference.alphas_cumprod)
    assert schedule.num_timesteps == 1000
    expected = reference.add_noise(latents, noise, STEPS)
    torch.testing.assert_close(add_noise(schedule, latents, noise, STEPS), expected)
    velocity = reference.get_velocity(latents, noise, STEPS)
    torch.testing.assert_close(target(schedule, "v", latents, noise, STEPS), velocity)


def test_snr_equals_diffusers(schedule, reference):
    torch.testing.assert_close(
        schedule.snr(STEPS), compute_snr(reference, STEPS), rtol=2e-5, atol=0
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_the_right_answer_gives_the_clean_latents(prediction, schedule, pair):
    latents, noise = pair
    noisy = add_noise(schedule, latents, noise, STEPS)
    model_output = target(schedule, prediction, latents, noise, STEPS)
    estimate = pred_original_sample(schedule, prediction, model_output, noisy, STEPS)
    torch.testing.assert_close(estimate, latents, rtol=1e-4, atol=1e-4)


def test_zero_terminal_snr_equals_diffusers(schedule, reference):
    rescaled = zero_terminal_snr(schedule)
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(reference.betas), dim=0)
    torch.testing.assert_close(rescaled.alphas_cumprod, expected, rtol=1e-4, atol=1e-6)
    assert rescaled.alphas_cumprod[-1] == 0
    torch.testing.assert_close(rescaled.alphas_cumprod[0], schedule.alphas_cumprod[0])
    assert (rescaled.alphas_cumprod.diff() < 0).all()


def test_at_zero_terminal_snr_v_is_minus_the_latents(schedule, pair):
    latents, noise = pair
    rescaled = zero_terminal_snr(schedule)
    last = torch.full((6,), 999)
    torch.testing.assert_close(add_noise(rescaled, latents, noise, last), noise)
    torch.testing.assert_close(target(rescaled, "v", latents, noise, last), -latents)


def test_min_snr_weighs_the_same_error_of_z0_alike_for_every_prediction(schedule):
    """A loss in epsilon or v is a loss in z_0 times SNR or SNR + 1."""
    snr = schedule.snr(STEPS)
    capped = torch.minimum(snr, torch.tensor(5.0))
    for prediction, factor in (("epsilon", snr), ("v", snr + 1), ("sample", torch.ones(6))):
        weights = loss_weights(schedule, prediction, STEPS, kind="min_snr")
        torch.testing.assert_close(weights * factor, capped)


def test_min_snr_is_finite_at_zero_snr(schedule):
    rescaled = zero_terminal_snr(schedule)
    last = torch.tensor([999])
    assert loss_weights(rescaled, "epsilon", last, kind="min_snr").item() == 1
    assert loss_weights(rescaled, "v", last, kind="min_snr").item() == 0


def test_debiased_weights(schedule):
    snr = schedule.snr(STEPS).clamp(max=1000)
    torch.testing.assert_close(loss_weights(schedule, "epsilon", STEPS, kind="debiased"), snr**-0.5)
    torch.testing.assert_close(loss_weights(schedule, "v", STEPS, kind="debiased"), 1 / (snr + 1))
    # The same loss on z_0 in both: SNR / sqrt(SNR).
    torch.testing.assert_close(loss_weights(schedule, "sample", STEPS, kind="debiased"), snr**0.5)
    assert loss_weights(schedule, "epsilon", STEPS, kind="none") is None

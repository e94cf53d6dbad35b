"""Flow matching against closed forms and diffusers."""

import numpy as np
import pytest
import torch

from konomi.config.sections import ObjectiveConfig, TimestepConfig
from konomi.diffusion.flow import FlowMatching
from konomi.diffusion.noise import scaled_linear_schedule
from konomi.diffusion.random import Rng
from konomi.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS
from konomi.diffusion.variance_preserving import VariancePreserving
from konomi.errors import RecipeError

FLOW = FlowMatching(shift=3.0)
VP = VariancePreserving(scaled_linear_schedule(), "epsilon")
CLEAN, NOISE = torch.randn(2, 4, 16, 6, 4, generator=torch.Generator().manual_seed(0))


def field(latents, t):
    """A velocity that bends, so that solvers differ."""
    return torch.sin(3 * latents) + t * latents.flip(0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_samplers_are_diffusers(name, shift):
    import diffusers

    kinds = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}
    theirs = getattr(diffusers, kinds[name])(shift=shift)
    times = np.linspace(1, 1 / 7, 7)
    if name == "euler":
        theirs.set_timesteps(sigmas=times)
    else:  # It places its levels otherwise; the step is what is judged.
        theirs.set_timesteps(7)
        sigmas = torch.tensor(shift * times / (1 + (shift - 1) * times), dtype=torch.float32)
        repeated = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), torch.zeros(1)])
        theirs.sigmas, theirs.timesteps = repeated, repeated[:-1] * 1000
    ours = FlowMatching(shift=shift).sampler(name, num_steps=7)
    torch.testing.assert_close(ours.timesteps * 1000, theirs.timesteps, atol=1e-3, rtol=1e-6)
    x = y = ours.first_latents(NOISE)
    for i, t in enumerate(theirs.timesteps):
        assert torch.equal(ours.model_input(x, i), x)
        x = ours.step(field(x, ours.timesteps[i]), i, x, [])
        y = theirs.step(field(y, t / 1000), t, y).prev_sample
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dpmpp_2m_is_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
        lower_order_final=False,
        final_sigmas_type="zero", euler_at_final=True,
    )  # fmt: skip
    theirs.set_timesteps(7)
    ours = FLOW.sampler("dpmpp_2m", num_steps=7)
    levels = ours._levels.sigmas
    levels[0] = 1 - 1e-3  # Theirs cannot begin at noise alone.
    theirs.sigmas, theirs.timesteps = levels, levels[:-1] * 1000
    x = y = NOISE
    for i, t in enumerate(theirs.timesteps):
        x = ours.step(field(x, ours.timesteps[i]), i, x, [])
        y = theirs.step(field(y, t / 1000), t, y).prev_sample
        assert torch.isfinite(x).all()
    torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_perfect_network_arrives_at_the_image_along_a_straight_line(name, strength):
    sampler = FLOW.sampler(name, num_steps=6, strength=strength)
    x = sampler.first_latents(NOISE) if strength == 1 else sampler.add_noise(CLEAN, NOISE)
    for i, t in enumerate(sampler.timesteps):
        torch.testing.assert_close(
            x, FLOW.add_noise(CLEAN, NOISE, t.expand(4)), atol=1e-5, rtol=1e-5
        )
        if sampler.steps[i] == i or name != "heun":
            x = sampler.step(FLOW.target(CLEAN, NOISE, t.expand(4)), i, x, [])
        else:
            x = sampler.step(NOISE - CLEAN, i, x, [])
    torch.testing.assert_close(x, CLEAN, atol=1e-4, rtol=1e-4)


def test_what_is_noised_is_estimated_again():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    noisy = FLOW.add_noise(CLEAN, NOISE, t)
    assert torch.equal(noisy[0], CLEAN[0]) and torch.equal(noisy[3], NOISE[3])
    torch.testing.assert_close(FLOW.pred_original_sample(NOISE - CLEAN, noisy, t), CLEAN)
    assert torch.equal(FLOW.target(CLEAN, NOISE, t), NOISE - CLEAN)


@pytest.mark.parametrize("mean, std, shift", [(0.0, 1.0, 1.0), (0.5, 0.7, 1.0), (0.0, 1.0, 3.0)])
def test_logit_normal_times_have_their_quantiles(mean, std, shift):
    settings = TimestepConfig(distribution="logit_normal", mean=mean, std=std, shift=shift)
    drawn = FLOW.draw_timesteps(Rng(torch.arange(20000)), ObjectiveConfig(timesteps=settings))
    normal = torch.distributions.Normal(mean, std)
    for quantile in (0.1, 0.5, 0.9):
        share = torch.sigmoid(normal.icdf(torch.tensor(quantile)))
        expected = shift * share / (1 + (shift - 1) * share)
        assert float((drawn <= expected).float().mean()) == pytest.approx(quantile, abs=0.01)


def test_uniform_times_within_bounds_and_the_bases_own_shift():
    objective = ObjectiveConfig(
        min_timestep=200, max_timestep=599, timesteps=TimestepConfig(distribution="uniform")
    )
    drawn = FlowMatching().draw_timesteps(Rng(torch.arange(4000)), objective)
    assert drawn.min() >= 0.2 and drawn.max() <= 0.6
    assert float(drawn.mean()) == pytest.approx(0.4, abs=0.01)
    assert FLOW.draw_timesteps(Rng(torch.arange(4000)), objective).mean() > drawn.mean() + 0.05


def test_a_share_of_the_way_is_a_timestep_of_each_process():
    assert [VP.timestep_at(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [0, 250, 500, 750, 999]
    assert [FLOW.timestep_at(share) for share in (0, 0.25, 1)] == [0, 0.25, 1]


def test_cosmap_is_diffusers():
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    t = torch.rand(8, generator=torch.Generator().manual_seed(1))
    ours = FLOW.loss_weights(t, ObjectiveConfig(weighting="cosmap"))
    torch.testing.assert_close(ours, compute_loss_weighting_for_sd3("cosmap", t))
    assert FLOW.loss_weights(t, ObjectiveConfig()) is None


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in FLOW_SAMPLERS])
def test_samplers_that_do_not_know_flow_are_refused(name):
    with pytest.raises(
        RecipeError, match=f"{name} does not know flow matching.*euler, heun, dpmpp_2m"
    ):
        FLOW.sampler(name, num_steps=4)


def test_settings_of_the_other_process_are_refused_or_named():
    for objective in (
        ObjectiveConfig(weighting="min_snr"),
        ObjectiveConfig(zero_terminal_snr=True),
    ):
        with pytest.raises(RecipeError, match="flow matching"):
            FLOW.for_objective(objective, "toy")
    with pytest.raises(RecipeError, match="cosmap"):
        VP.for_objective(ObjectiveConfig(weighting="cosmap"), "tiny")
    names = {f"objective.timesteps.{name}" for name in ("distribution", "mean", "std", "shift")}
    assert set(VP.unused(ObjectiveConfig())) == names
    assert not FLOW.unused(ObjectiveConfig())
    uniform = FLOW.unused(ObjectiveConfig(timesteps=TimestepConfig(distribution="uniform")))
    assert set(uniform) == {"objective.timesteps.mean", "objective.timesteps.std"}

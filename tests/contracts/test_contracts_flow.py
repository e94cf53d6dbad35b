"""Flow matching through the unchanged methods, loop and generation: no code above `diffusion/`
knows of it.
"""

from dataclasses import replace

import pytest
import torch

from konomi.config.sections import ObjectiveConfig, TimestepConfig
from konomi.diffusion.flow import FlowMatching
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.methods.denoising import DenoisingLoss
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer


def flow_base(kit):
    base = kit.base("sd1", small=True)
    base.process = FlowMatching(shift=3.0)
    return base


def test_the_loss_is_the_closed_form(kit):
    base, examples = flow_base(kit), kit.examples()
    recipe = kit.recipe(None)
    loss = DenoisingLoss(base, recipe)
    rng = Rng.for_step(5, 3)
    noised = loss.add_noise(examples, rng.for_samples(examples.sample_ids))
    t = noised.timesteps_B.double().view(-1, 1, 1, 1)
    expected = (1 - t) * noised.latents.double() + t * noised.noise.double()
    torch.testing.assert_close(noised.noisy_latents.double(), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        text = base.encode_captions(examples.captions, recipe.text)
        noise_pred = base.predict(noised.noisy_latents, noised.timesteps_B, text)
        wanted = (noised.noise - noised.latents).double()
        expected = (noise_pred.double() - wanted).square().flatten(1).mean(1)
        torch.testing.assert_close(
            loss.per_example(examples, rng).double(), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["lora", "full", "dreamartist"])
def test_methods_train_it(kit, kind):
    base = flow_base(kit)
    recipe = kit.recipe(kit.method_type(kind).config_type())
    method = kit.method(base, recipe)
    trainer = Trainer(method.plan(), recipe, processes=Processes(0, 1, kit.device), total_steps=2)
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    assert len(losses) == 2 and all(torch.isfinite(torch.tensor(loss)) for loss in losses)
    method.close()


def test_pictures_are_drawn_with_the_samplers_that_know_it(kit):
    base = flow_base(kit)
    request = Request(prompt="a dog", steps=2, width=64, height=64, sampler="euler")
    (picture,) = generate(base, [request])
    assert picture.image.size == (64, 64)
    with pytest.raises(RecipeError, match="ddim does not know flow matching"):
        list(
            generate(base, [Request(prompt="a dog", steps=2, width=64, height=64, sampler="ddim")])
        )


def test_settings_of_the_other_process_stop_a_run_before_its_first_step(kit):
    for objective in (
        ObjectiveConfig(weighting="min_snr"),
        ObjectiveConfig(zero_terminal_snr=True),
    ):
        with pytest.raises(RecipeError, match="flow matching"):
            DenoisingLoss(flow_base(kit), replace(kit.recipe(None), objective=objective))


def test_times_follow_the_recipe(kit):
    base = flow_base(kit)
    timesteps = TimestepConfig(distribution="uniform", shift=1.0)
    objective = ObjectiveConfig(min_timestep=900, timesteps=timesteps)
    loss = DenoisingLoss(base, replace(kit.recipe(None), objective=objective))
    noised = loss.add_noise(kit.examples(), Rng(torch.arange(2)))
    assert noised.timesteps_B.min() >= 0.9

"""Losses and weights of five steps against a plain PyTorch loop with diffusers' own modules and
scheduler.
"""

import math

import pytest
import torch
from torch.nn import functional

from konomi.diffusion.random import Rng
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

STEPS = 5


def diffusers_scheduler(base):
    from diffusers import DDPMScheduler

    prediction = {"epsilon": "epsilon", "v": "v_prediction"}[base.process.prediction]
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
    )


def plain_loss(base, unet, examples, step, text):
    """The textbook loss with diffusers' scheduler; only noise and timesteps are taken from
    konomi's draws.
    """
    rng = Rng.for_step(5, step).for_samples(examples.sample_ids)
    latents = examples.latents.mean + examples.latents.std * rng.fork("latents").normal((4, 8, 8))
    noise = rng.fork("noise").normal((4, 8, 8))
    timesteps = rng.fork("timestep").integers(0, 1000)
    scheduler = diffusers_scheduler(base)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    extra = {}
    if text.pooled is not None:
        extra = {
            "added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": examples.sizes.float()}
        }
    noise_pred = unet(noisy, timesteps, encoder_hidden_states=text.states, **extra).sample
    wanted = (
        noise
        if base.process.prediction == "epsilon"
        else scheduler.get_velocity(latents, noise, timesteps)
    )
    return functional.mse_loss(noise_pred, wanted)


def run_konomi(kit, family, kind, prediction=None, rate=1e-3):
    base = kit.base(family) if prediction is None else kit.base(family, prediction=prediction)
    method_type = kit.method_type(kind)
    recipe = kit.recipe(method_type.config_type(), clip_norm=0, learning_rate=rate)
    method = kit.method(base, recipe)
    trainer = Trainer(
        method.plan(), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=STEPS
    )
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    return losses, {name: p.detach() for name, p in trainer.parameters.items()}, method


@pytest.mark.parametrize(("family", "prediction"), [("sd1", None), ("sd2", "v"), ("sdxl", None)])
@pytest.mark.kernels
def test_full_fine_tuning(kit, family, prediction):
    losses, weights, _ = run_konomi(kit, family, "full", prediction)
    base = kit.base(family) if prediction is None else kit.base(family, prediction=prediction)
    examples = kit.examples()
    with torch.no_grad():
        text = base.encode_captions(examples.captions, kit.recipe(None).text)
    unet = base.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    expected = []
    for step in range(STEPS):
        loss = plain_loss(base, unet, examples, step, text)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    # Adam divides by the root of tiny second moments, so single weights may differ by a little
    # more than losses do.
    largest = max(
        (weights[f"denoiser.{n}"] - p).abs().max().item() for n, p in unet.named_parameters()
    )
    assert largest < 1e-5


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.kernels
def test_lora_against_peft(kit, family):
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    losses, weights, _ = run_konomi(kit, family, "lora", rate=1e-4)
    base = kit.base(family)
    examples = kit.examples()
    with torch.no_grad():
        text = base.encode_captions(examples.captions, kit.recipe(None).text)
    names = [key.removeprefix("denoiser.") for key in base.select_layers("transformer")]
    unet = inject_adapter_in_model(
        PeftConfig(r=16, lora_alpha=16, target_modules=names), base.denoiser
    )
    start = kit.method(kit.base(family), kit.recipe(kit.method_type("lora").config_type()))
    start.plan()
    initial = dict(start.layers.parameters)
    theirs = {}
    for name, p in unet.named_parameters():
        p.requires_grad_("lora_" in name)
        if "lora_" in name:
            module, half = name.replace(".default.weight", "").rsplit(".lora_", 1)
            ours = f"denoiser.{module}.{'down' if half == 'A' else 'up'}"
            p.data.copy_(initial[ours].detach().view_as(p))
            theirs[ours] = p
    assert set(theirs) == set(weights)
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-4, weight_decay=0.01)
    expected = []
    for step in range(STEPS):
        loss = plain_loss(base, unet, examples, step, text)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    assert not math.isclose(losses[0], losses[-1], abs_tol=1e-6)
    assert (
        max((weights[n] - p.view_as(weights[n])).abs().max().item() for n, p in theirs.items())
        < 1e-5
    )

"""DreamBooth's loss and gradients against formulas in float64, with diffusers' scheduler and
transformers' text states.

The denoiser itself is held against diffusers' elsewhere (tests/unit/models).
"""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from konomi.config.prior import PriorConfig
from konomi.config.sections import OptimizerConfig
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.methods.dreambooth import Dreambooth, DreamboothConfig
from konomi.methods.full import FullConfig
from konomi.methods.lora import LoraConfig
from konomi.models.tokenizer import build_tokenizer
from twins import transformers_text

FAMILIES = [("sd1", None), ("sd2", "v"), ("sdxl", None)]
WEIGHT = 0.7
every_family = pytest.mark.parametrize(("family", "prediction"), FAMILIES)


def a_base(kit, family, prediction, dtype=torch.float32):
    base = kit.base(family) if prediction is None else kit.base(family, prediction=prediction)
    base.place("cpu", dtype)
    return base


def a_recipe(kit, *, source="generate", **config):
    recipe = kit.recipe(DreamboothConfig(**config))
    objective = replace(recipe.objective, prior_weight=WEIGHT)
    return replace(recipe, objective=objective, prior=PriorConfig(source=source))


def text_states(base, captions, encoders):
    """(states, pooled) by transformers itself: `encoders` part -> {name: tensor} in place of the
    module's own.
    """
    states, pooled = [], None
    for loaded_encoder in base.loaded_encoders():
        stored = base.source.tokenizer(loaded_encoder.part.replace("text_encoder", "tokenizer"))
        tokenizer = build_tokenizer(stored.vocabulary, pad_token=stored.pad_token)
        ids = tokenizer(list(captions), padding="max_length", max_length=77, return_tensors="pt")[
            "input_ids"
        ]
        theirs = transformers_text(
            loaded_encoder.module, base.source.configs[loaded_encoder.part]
        ).double()
        told = functional_call(
            theirs,
            encoders[loaded_encoder.part],
            kwargs={"input_ids": ids, "output_hidden_states": True},
        )
        last = (
            told.last_hidden_state
            if loaded_encoder.layer == 1
            else told.hidden_states[-loaded_encoder.layer]
        )
        states.append(last)
        pooled = told.text_embeds if loaded_encoder.pooled else pooled
    return torch.cat(states, -1), pooled


def scheduler(base):
    from diffusers import DDPMScheduler

    prediction = {"epsilon": "epsilon", "v": "v_prediction"}[base.process.prediction]
    plan = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
    )
    plan.alphas_cumprod = base.process.schedule.alphas_cumprod.double()
    return plan


def asked(base, examples, rng):
    """(noisy latents, timesteps, target) in float64; only the draws are konomi's."""
    rng = rng.for_samples(examples.sample_ids)
    latents = (
        examples.latents.mean + examples.latents.std * rng.fork("latents").normal((4, 8, 8))
    ).double()
    noise = rng.fork("noise").normal((4, 8, 8)).double()
    timesteps = rng.fork("timestep").integers(0, 1000)
    plan = scheduler(base)
    wanted = (
        noise
        if base.process.prediction == "epsilon"
        else plan.get_velocity(latents, noise, timesteps)
    )
    return plan.add_noise(latents, noise, timesteps), timesteps, wanted


def noise_pred(base, weights, noisy, timesteps, captions, sizes):
    """The denoiser's answer with `weights`: part -> {name: float64 tensor}."""
    states, pooled = text_states(base, captions, weights)
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes.double()}
    unet = functional_call(
        base.denoiser,
        weights["denoiser"],
        (noisy, timesteps),
        {"encoder_hidden_states": states, "added_cond_kwargs": added},
    )
    return unet.sample if hasattr(unet, "sample") else unet[0]


def all_weights(base):
    modules = {"denoiser": base.denoiser, **base.text_encoders}
    return {
        part: {n: p.detach().double() for n, p in m.named_parameters()}
        for part, m in modules.items()
    }


def disturb(parameters, seed=1):
    """Away from the start, where the trained and the untouched base would agree."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.05 * torch.randn(p.shape, generator=g))


def expected_loss(base64, now, before, batch, rng, source):
    """Subject + weight x class, `now` the weights in training and `before` those of the untouched
    base.
    """
    subject = batch.subject
    noisy, timesteps, wanted = asked(base64, subject, rng)
    loss = functional.mse_loss(
        noise_pred(base64, now, noisy, timesteps, subject.captions, subject.sizes), wanted
    )
    if source == "prediction":
        captions = ["a dog"] * len(subject)
        wanted = noise_pred(base64, before, noisy, timesteps, captions, subject.sizes).detach()
        told = noise_pred(base64, now, noisy, timesteps, captions, subject.sizes)
    else:
        prior = batch.prior
        noisy, timesteps, wanted = asked(base64, prior, rng.fork("prior"))
        told = noise_pred(base64, now, noisy, timesteps, prior.captions, prior.sizes)
    return loss + WEIGHT * functional.mse_loss(told, wanted)


def a_batch(kit, source):
    subject = replace(kit.examples(), class_nouns=("dog", "dog"))
    prior = replace(kit.examples(seed=3, first_id=50), captions=("a dog", "a dog"))
    return Batch(subject, prior if source == "generate" else None)


def check(ours, expected):
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            ours[name].double(), gradient, rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name
        )


@every_family
@pytest.mark.parametrize("source", ["generate", "prediction"])
@pytest.mark.parametrize("text_encoder", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_all_weights(kit, family, prediction, source, text_encoder):
    base = a_base(kit, family, prediction)
    method = kit.method(base, a_recipe(kit, source=source, text_encoder=text_encoder))
    (phase,) = method.plan()
    parameters = {name: p for group in phase.groups for name, p in group.parameters.items()}
    assert any(name.startswith("text_encoder") for name in parameters) == text_encoder
    disturb(parameters.values())
    batch, rng = a_batch(kit, source), Rng.for_step(5, 0)
    loss = phase.loss(batch, rng)
    loss.backward()

    base64 = a_base(kit, family, prediction, torch.float64)
    before, now = all_weights(base64), all_weights(base)
    leaves = {}
    for part, tensors in now.items():
        for name in tensors:
            if f"{part}.{name}" in parameters:
                leaves[f"{part}.{name}"] = tensors[name] = tensors[name].requires_grad_()
    assert leaves.keys() == parameters.keys()
    expected = expected_loss(base64, now, before, batch, rng, source)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(expected, list(leaves.values()), allow_unused=True)
    wanted = {name: gradient for name, gradient in zip(leaves, gradients) if gradient is not None}
    assert len(wanted) > 20
    check({name: parameters[name].grad for name in wanted}, wanted)


@every_family
@pytest.mark.parametrize("source", ["generate", "prediction"])
@pytest.mark.kernels
def test_lora(kit, family, prediction, source):
    base = a_base(kit, family, prediction)
    method = kit.method(base, a_recipe(kit, source=source, train="lora", rank=4))
    (phase,) = method.plan()
    parameters = {name: p for group in phase.groups for name, p in group.parameters.items()}
    disturb(parameters.values())
    batch, rng = a_batch(kit, source), Rng.for_step(5, 0)
    loss = phase.loss(batch, rng)
    loss.backward()

    base64 = a_base(kit, family, prediction, torch.float64)
    before = all_weights(base64)
    now = {part: dict(tensors) for part, tensors in before.items()}
    leaves = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    owners = {id(m): (part, n) for part in now for n, m in part_of(base64, part).named_modules()}
    for key in {name.rpartition(".")[0] for name in leaves}:
        part, path = owners[id(base64.module(key))]
        down, up = leaves[f"{key}.down"], leaves[f"{key}.up"]
        change = (up.flatten(1) @ down.flatten(1)).view_as(before[part][f"{path}.weight"])
        now[part][f"{path}.weight"] = before[part][f"{path}.weight"] + change
    expected = expected_loss(base64, now, before, batch, rng, source)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(expected, list(leaves.values()), allow_unused=True)
    check(
        {name: parameters[name].grad for name, g in zip(leaves, gradients) if g is not None},
        {name: g for name, g in zip(leaves, gradients) if g is not None},
    )


def part_of(base, part):
    return base.denoiser if part == "denoiser" else base.text_encoders[part]


@pytest.mark.parametrize(
    "config", [FullConfig(), LoraConfig(rank=2), DreamboothConfig(), DreamboothConfig(train="lora")]
)
def test_the_untouched_base_answers_for_itself_all_along(kit, config):
    """However far training has gone, the target is what the base said at the start; nothing is
    left behind.
    """
    base = kit.base("sd1")
    recipe = replace(kit.recipe(config), prior=PriorConfig(source="prediction"))
    method = kit.method(base, recipe)
    (phase,) = method.plan()
    loss = (method.training if isinstance(method, Dreambooth) else method).preserving
    subject, rng = a_batch(kit, "prediction").subject, Rng.for_step(5, 0)
    at_first = loss.target(subject, rng)
    parameters = [p for group in phase.groups for p in group.parameters.values()]
    disturb(parameters)
    kept = [p.detach().clone() for p in parameters]
    assert torch.equal(loss.target(subject, rng), at_first)
    assert all(torch.equal(a, b) for a, b in zip(kept, parameters, strict=True))
    assert loss.prediction_loss(subject, at_first, rng) > 1e-4
    # In half precision the trained weights are cast anew for each of the two answers.
    with torch.autocast("cpu", torch.bfloat16):
        target = loss.target(subject, rng)
        loss.prediction_loss(subject, target, rng).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)


def test_the_learning_rates_are_the_papers_unless_the_recipe_has_its_own(kit):
    def rates(optimizer, width=320, **config):
        recipe = replace(kit.recipe(DreamboothConfig(**config)), optimizer=optimizer)
        loaded = kit.base("sd1")
        loaded.width = width
        method = kit.method(loaded, recipe)
        rates = {
            group.name: group.learning_rate for phase in method.plan() for group in phase.groups
        }
        method.close()
        return rates

    default = OptimizerConfig()
    assert rates(default) == {"denoiser": 2e-6, "text_encoder": 2e-6}
    assert rates(default, text_encoder=False) == {"denoiser": 5e-6}
    lora = rates(default, train="lora")
    assert {lora["denoiser.a"], lora["text.a"]} == {1e-4, 5e-5}
    # As one over the width.
    assert rates(default, width=64) == pytest.approx({"denoiser": 1e-5, "text_encoder": 1e-5})
    assert rates(default, width=64, train="lora")["denoiser.a"] == pytest.approx(5e-4)
    own = OptimizerConfig(learning_rate=1e-3, text_learning_rate=1e-5)
    assert rates(own) == {"denoiser": 1e-3, "text_encoder": 1e-5}
    assert rates(OptimizerConfig(kind="prodigy"))["denoiser"] == pytest.approx(1.0)

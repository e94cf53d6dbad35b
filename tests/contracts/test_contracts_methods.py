"""What every method keeps to, with every family. A new method is picked up from METHODS."""

import copy
from dataclasses import replace

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Attachment, Strengths, attach
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.random import Rng
from konomi.methods import METHODS
from konomi.methods.method import Weights
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

KINDS = [method.config_type().kind for method in METHODS]
FAMILIES = ["sd1", "sd2", "sdxl"]
REACH = {
    "hypernetwork": (1e-2, 0.95),
    "custom_diffusion": (2e-2, 0.95),
    "textual_inversion": (2e-2, 0.995),
    "dreamartist": (1e-2, 0.98),
}
"""Learning rate, and share of the first loss that is left: what changes only the inputs of
attention can do less for a base of random weights, and starts almost at zero."""
every_method = pytest.mark.parametrize("kind", KINDS)
every_family = pytest.mark.parametrize("family", FAMILIES)
# What does not depend on the family is tried with the others among the slow tests.
one_family_first = pytest.mark.parametrize(
    "family",
    [FAMILIES[0], *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[1:])],
)


def everything(base):
    """All weights of all parts, by part and name."""
    modules = {"denoiser": base.denoiser, "vae": base.vae, **base.text_encoders}
    return {
        f"{part}.{n}": p.detach().clone()
        for part, m in modules.items()
        for n, p in m.named_parameters()
    }


def noise_pred(base, kit):
    """The denoiser's prediction for fixed inputs."""
    examples = kit.examples(seed=9)
    conditioning = base.with_sizes(
        base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
    )
    with torch.no_grad():
        latents, timesteps = (
            examples.latents.mean.to(base.device),
            torch.tensor([500, 20], device=base.device),
        )
        return base.predict(latents, timesteps, conditioning)


def start(kit, family, kind, *, seed=0, total=4, **optimizer):
    base = kit.base(family, seed=seed)
    method_type = kit.method_type(kind)
    recipe = kit.recipe(method_type.config_type(), **optimizer)
    method = kit.method(base, recipe)
    trainer = Trainer(
        method.plan(), recipe, processes=Processes(0, 1, kit.device), total_steps=total
    )
    return base, method, trainer


def train(trainer, kit, batch=None):
    return [event.loss for event in trainer.run(kit.stream(batch or kit.batch()), stop=Stop())]


@every_method
@every_family
def test_learns_moves_only_what_it_declares_and_closes_cleanly(kit, kind, family):
    base, method, trainer = start(kit, family, kind)
    before = everything(base)
    losses = train(trainer, kit, replace(kit.batch(), images=(1, 2)))
    assert all(torch.isfinite(torch.tensor(losses)))
    # For the log: each subject's own loss, in every step.
    assert trainer.losses.tensors()["image"].tolist() == [1, 2] * 4
    declared = {
        id(p) for phase in trainer.phases for g in phase.groups for p in g.parameters.values()
    }
    modules = {"denoiser": base.denoiser, "vae": base.vae, **base.text_encoders}
    moved = {
        f"{part}.{n}"
        for part, m in modules.items()
        for n, p in m.named_parameters()
        if not torch.equal(p, before[f"{part}.{n}"])
    }
    allowed = {
        f"{part}.{n}"
        for part, m in modules.items()
        for n, p in m.named_parameters()
        if id(p) in declared
    }
    assert moved <= allowed
    trained = [p for phase in trainer.phases for g in phase.groups for p in g.parameters.values()]
    assert all(p.grad is None for p in trained)
    method.close()
    assert not any(p.requires_grad for m in modules.values() for p in m.parameters())


@every_method
@one_family_first
@pytest.mark.kernels
def test_same_seed_same_bits(kit, kind, family):
    results = []
    for _ in range(2):
        _, _, trainer = start(kit, family, kind, total=3)
        losses = train(trainer, kit)
        results.append((losses, trainer.state().tensors["weights"]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][n], results[1][1][n]) for n in results[0][1])


@pytest.mark.parametrize(
    "kind",
    [
        kind
        if kind in ("lora", "textual_inversion")
        else pytest.param(kind, marks=pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_loss_falls_on_something_learnable(kit, kind):
    """Two images: the loss, with the same noise before and after, has to fall well below where it
    began.
    """
    rate, share = REACH.get(kind, (2e-3, 0.9))
    _, method, trainer = start(kit, "sd1", kind, seed=2, total=60, learning_rate=rate)

    def measured():
        with torch.no_grad():
            return sum(
                method.loss(kit.batch(), Rng.for_step(99, step)).item() for step in range(10)
            )

    before = measured()
    train(trainer, kit)
    assert measured() < share * before


@every_method
@one_family_first
@pytest.mark.kernels
def test_resume_equals_uninterrupted(kit, kind, family):
    _, _, whole = start(kit, family, kind, total=4)
    expected = train(whole, kit)
    _, _, first = start(kit, family, kind, total=4)
    run = first.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: step == 2)
    losses = [next(run).loss, next(run).loss]
    state = copy.deepcopy(first.state())
    run.close()
    _, _, second = start(kit, family, kind, total=4)
    second.restore(state)
    losses += train(second, kit)
    assert losses == expected
    a, b = whole.state().tensors["weights"], second.state().tensors["weights"]
    assert all(torch.equal(a[name], b[name]) for name in a)


@every_method
def test_previews_keep_no_copy_of_weights_on_the_device(kit, kind, monkeypatch):
    """Whatever a method puts aside for a preview goes to main memory: bytes copied where the base
    lives are none.
    """
    copied = {"device": 0, "main memory": 0}
    keep = Attachment.keep

    def counted(attachment, parameter, *, on_cpu):
        copied["main memory" if on_cpu else "device"] += (
            parameter.numel() * parameter.element_size()
        )
        keep(attachment, parameter, on_cpu=on_cpu)

    monkeypatch.setattr(Attachment, "keep", counted)
    base, method, _ = start(kit, "sd1", kind)
    with method.as_loaded(method.export()):
        pass
    assert copied["device"] == 0
    if kind == "lora":
        layers = [base.module(key) for key in method.export().layers]
        assert copied["main memory"] == sum(layer.weight.numel() * 4 for layer in layers)


@every_method
@one_family_first
@pytest.mark.kernels
def test_as_loaded_shows_what_was_exported_and_leaves_no_trace(kit, kind, family):
    base, method, trainer = start(kit, family, kind, total=3, learning_rate=1e-2)
    original_base = noise_pred(base, kit)
    train(trainer, kit)
    live = noise_pred(base, kit)
    assert not torch.allclose(live, original_base, atol=1e-4)
    result = method.export()
    state = copy.deepcopy(trainer.state().tensors["weights"])
    with method.as_loaded(result):
        shown = noise_pred(base, kit)
    # fp16 on the way to the file for whole weights; adapters are exact to float32 rounding.
    torch.testing.assert_close(
        shown, live, rtol=2e-2, atol=2e-2 if isinstance(result, Weights) else 1e-4
    )
    assert torch.equal(noise_pred(base, kit), live)
    assert all(torch.equal(state[n], t) for n, t in trainer.state().tensors["weights"].items())


@one_family_first
@pytest.mark.kernels
def test_adapters_attach_to_a_fresh_base_and_strength_zero_is_identity(kit, family):
    for kind in KINDS:
        base, method, trainer = start(kit, family, kind, total=3, learning_rate=1e-2)
        train(trainer, kit)
        result = method.export()
        if not isinstance(result, Adapter):
            continue
        live = noise_pred(base, kit)
        fresh = kit.base(family)
        original_base = noise_pred(fresh, kit)
        with attach(fresh, [(result, Strengths())]):
            torch.testing.assert_close(noise_pred(fresh, kit), live, rtol=1e-4, atol=1e-4)
        assert torch.equal(noise_pred(fresh, kit), original_base)
        with attach(fresh, [(result, Strengths(0.0, 0.0))]):
            assert torch.equal(noise_pred(fresh, kit), original_base)


@every_method
@one_family_first
def test_prior_images_add_their_weighted_loss(kit, kind, family):
    _, method, _ = start(kit, family, kind)
    batch = kit.batch()
    with_prior = replace(batch, prior=kit.examples(seed=3, first_id=50))
    rng = Rng.for_step(0, 1)
    alone = method.loss(batch, rng)
    prior_only = method.loss(replace(batch, subject=with_prior.prior), rng.fork("prior"))
    both = method.loss(with_prior, rng)
    torch.testing.assert_close(both, alone + prior_only, rtol=1e-5, atol=1e-6)


@every_family
@pytest.mark.kernels
def test_cached_text_gives_the_same_loss(kit, family):
    base, method, _ = start(kit, family, "lora")
    examples = kit.examples()
    fresh = method.denoising(examples, Rng.for_step(0, 0))
    with torch.no_grad():
        text = base.encode_captions(examples.captions, kit.recipe(None).text)
    assert isinstance(text, Conditioning)
    cached = method.denoising(replace(examples, text=text), Rng.for_step(0, 0))
    torch.testing.assert_close(cached, fresh)

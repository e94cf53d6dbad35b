"""What is trained beside a base keeps to `LiveAdapter`, whatever it is: layers, words, networks,
weights, branches.
"""

import pytest
import torch

from konomi.adapters.adapter import Hypernetwork
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.branches import BranchLayers, negative_branch
from konomi.adapters.hypernetwork import LiveHypernetwork, make_network, width_of
from konomi.adapters.kinds import tensors_of
from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import inject
from konomi.adapters.live import LiveAdapters, set_requires_grad
from konomi.adapters.tokens import TrainedTokens
from konomi.adapters.weight_change import WeightChanges
from konomi.config.sections import TextConfig
from konomi.diffusion.random import Rng
from konomi.formats.hypernetwork import tensors_of as networks_of


def layers(base, seed=1):
    modules = base.select_layers("cross_attention")
    return inject(modules, lambda key: LoraSpec(2, 2.0, dropout=0.5), seed=seed)


def words(base):
    vectors = {part: torch.randn(2, width) for part, width in widths_of(base).items()}
    return TrainedTokens(base.added_tokens, {"sks": vectors})


def networks(base):
    spec = Hypernetwork({}, dropout=(0.0, 0.5, 0.0), activation="relu")
    found = base.select_layers("attention.kv")
    pairs = {}
    for layer in found.values():
        pairs[width_of(layer)] = tuple(
            make_network(width_of(layer), spec, layer.weight) for _ in "kv"
        )
    return LiveHypernetwork(found, pairs, spec, values=base.select_layers("attention.v"))


def changes(base):
    return WeightChanges(base.select_layers("cross_attention.kv"))


def branches(base):
    halves = []
    for seed in (1, 2):
        halves.append(layers(base, seed))
        halves[-1].detach()
    return BranchLayers(*halves)


def together(base):
    return LiveAdapters(words(base), changes(base), networks(base))


every_live_adapter = pytest.mark.parametrize(
    "make", [layers, words, networks, changes, branches, together]
)


def widths_of(base):
    return {
        part: base.module(f"{part}.text_model.embeddings.token_embedding").weight.shape[1]
        for part in base.text_encoders
    }


@pytest.fixture(scope="module")
def shared():
    from konomi.models.random_base import random_base

    base = random_base("sd1")
    base.place("cpu", torch.float32)
    return base


@pytest.fixture
def base(shared):
    yield shared
    assert not shared.added_tokens
    assert not any("forward" in vars(module) for module in shared.denoiser.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in shared.denoiser.modules())


def noise_pred(base, caption="a photo of sks", *, negative=False):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        text = base.encode_captions([caption] * 2, TextConfig())
        latents = torch.randn(2, 4, 8, 8)
        if not negative:
            return base.predict(latents, torch.tensor([500, 20]), text)
        with negative_branch(base):
            return base.predict(latents, torch.tensor([500, 20]), text)


@pytest.fixture
def made(base):
    """Makes a live adapter away from its start, and takes it off at the end."""
    found = []

    def make(kind):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            found.append(kind(base))
            with torch.no_grad():
                for parameter in found[-1].parameters.values():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return found[-1]

    yield make
    for live in found:
        live.detach()


@every_live_adapter
def test_is_on_the_base_from_the_start_and_off_it_bit_for_bit(base, made, make):
    plain = noise_pred(base)
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    live = made(make)
    assert live.attached
    learned = noise_pred(base)
    assert not torch.equal(learned, plain)
    with live.pause():
        assert not live.attached
        assert torch.equal(noise_pred(base), plain)
    assert live.attached
    assert torch.equal(noise_pred(base), learned)
    live.detach()
    live.detach()
    assert not live.attached
    assert torch.equal(noise_pred(base), plain)
    with live.pause():
        assert torch.equal(noise_pred(base), plain)
    # What was off before a pause stays off after it.
    assert not live.attached
    assert torch.equal(noise_pred(base), plain)
    live.attach()
    live.attach()
    assert torch.equal(noise_pred(base), learned)
    live.detach()
    assert torch.equal(noise_pred(base), plain)
    after = base.denoiser.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(value, after[name]) for name, value in before.items()
    )


@every_live_adapter
def test_comes_back_when_a_pause_breaks_off(base, made, make):
    live = made(make)
    learned = noise_pred(base)
    with pytest.raises(KeyError), live.pause():
        raise KeyError
    assert live.attached
    assert torch.equal(noise_pred(base), learned)


@every_live_adapter
def test_what_is_exported_computes_what_was_trained(base, made, make):
    live = made(make)
    learned = noise_pred(base)
    exported = live.export()
    live.detach()
    with attach(base, [(exported, Strengths())]):
        torch.testing.assert_close(noise_pred(base), learned, rtol=1e-3, atol=1e-4)
        if exported.negative is not None:
            assert (noise_pred(base, negative=True) - learned).abs().max() > 1e-3


@every_live_adapter
def test_what_is_exported_is_a_copy_at_least_in_float32(made, make):
    live = made(make)
    exported = live.export()
    tensors = [t for update in exported.layers.values() for t in (update.whole,) if t is not None]
    tensors += [t for vectors in exported.embeddings.values() for t in vectors.values()]
    tensors += (
        [] if exported.hypernetwork is None else list(networks_of(exported.hypernetwork).values())
    )
    for adapter in (exported, exported.negative):
        for update in () if adapter is None else adapter.layers.values():
            tensors += [] if update.whole is not None else list(tensors_of(update).values())
    assert tensors
    before = [tensor.clone() for tensor in tensors]
    with torch.no_grad():
        for parameter in live.parameters.values():
            parameter.add_(1.0)
    assert all(
        torch.equal(tensor, old) and tensor.dtype == torch.float32
        for tensor, old in zip(tensors, before)
    )


@every_live_adapter
def test_gradients_reach_its_parameters_and_nothing_else(base, made, make):
    base.denoiser.requires_grad_(False)
    live = made(make)
    base.denoiser.train()
    try:
        live.begin_step(Rng.for_step(0, 0).for_samples(torch.arange(2)))
        text = base.encode_captions(["a photo of sks"] * 2, TextConfig())
        base.predict(
            torch.randn(2, 4, 8, 8), torch.tensor([500, 20]), text
        ).square().mean().backward()
        reached = {
            name for name, parameter in live.parameters.items() if parameter.grad is not None
        }
        assert reached == live.parameters.keys()
        modules = (base.denoiser, *base.text_encoders.values())
        assert all(
            parameter.grad is None for module in modules for parameter in module.parameters()
        )
    finally:
        base.denoiser.eval()
    set_requires_grad(live, False)
    assert not any(parameter.requires_grad for parameter in live.parameters.values())


@every_live_adapter
def test_chance_is_that_of_the_step(base, made, make):
    live = made(make)
    base.denoiser.train()
    try:
        drawn = []
        for step in (0, 1, 0):
            live.begin_step(Rng.for_step(0, step).for_samples(torch.arange(2)))
            drawn.append(noise_pred(base))
    finally:
        base.denoiser.eval()
    assert torch.equal(drawn[0], drawn[2])
    draws = make not in (words, changes)
    assert torch.equal(drawn[0], drawn[1]) != draws

"""Whole weights: applied, turned into differences and back, compressed."""

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.conversion import compress, with_origins
from konomi.adapters.delta import delta
from konomi.adapters.kinds import Difference, LowRank, Replacement
from konomi.errors import ModelError
from konomi.models.random_base import random_base

KEY = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0])
def test_a_whole_weight_takes_the_place_of_the_bases(strength):
    base = random_base("sd1")
    module = base.module(KEY)
    before = module.weight.detach().clone()
    whole = random(*before.shape)
    with attach(base, [(Adapter({KEY: Replacement(whole)}), Strengths(strength))]):
        torch.testing.assert_close(module.weight, before + strength * (whole - before))
    assert torch.equal(module.weight, before)


def test_one_of_another_shape_is_refused_and_nothing_changes():
    base = random_base("sd1")
    before = base.module(KEY).weight.detach().clone()
    with pytest.raises(ModelError, match="does not fit"):
        attach(base, [(Adapter({KEY: Replacement(random(3, 5))}), Strengths())])
    assert torch.equal(base.module(KEY).weight, before)


def test_a_bias_comes_with_it():
    key = KEY.replace("to_k", "to_out.0")
    base = random_base("sd1")
    module = base.module(key)
    whole, bias = random(*module.weight.shape), random(*module.bias.shape, seed=1)
    with attach(base, [(Adapter({key: Replacement(whole, None, bias)}), Strengths())]):
        torch.testing.assert_close(module.weight, whole)
        torch.testing.assert_close(module.bias, bias)


def test_every_kind_becomes_a_whole_weight_and_a_difference_again():
    base = random_base("sd1")
    weight = base.module(KEY).weight.detach()
    change = random(*weight.shape)
    low = LowRank(random(2, weight.shape[1]), random(weight.shape[0], 2, seed=1), 4.0)
    for update in (Difference(change), Replacement(weight + change), low):
        layer = with_origins(base, Adapter({KEY: update})).layers[KEY]
        assert isinstance(layer, Replacement)
        torch.testing.assert_close(layer.weight, weight + delta(update, weight))
        torch.testing.assert_close(layer.difference(), delta(update, weight), rtol=1e-5, atol=1e-6)
    assert Replacement(weight).difference() is None


def test_half_precision_weights_stay_bit_for_bit():
    base = random_base("sd1")
    whole = random(*base.module(KEY).weight.shape, dtype=torch.float16)
    layer = with_origins(base, Adapter({KEY: Replacement(whole)})).layers[KEY]
    assert torch.equal(layer.weight.half(), whole)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9, 1.0])
def test_compression_keeps_the_share_and_no_direction_more(share):
    """The oracle is NumPy's decomposition and Eckart and Young: the error is the singular values
    left out.
    """
    import numpy as np

    change = random(20, 12)
    layer = compress({KEY: Difference(change)}, share)[KEY]
    values = np.linalg.svd(change.double().numpy(), compute_uv=False)
    rank = layer.down.shape[0]
    assert values[:rank].sum() >= share * values.sum() * (1 - 1e-9)
    assert rank == 1 or values[: rank - 1].sum() < share * values.sum()
    error = (change.double() - layer.up.double() @ layer.down.double()).norm().item()
    assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-4, abs=1e-5)
    assert layer.alpha == rank


def test_nothing_learned_is_one_direction_of_zeros_and_unknown_is_refused():
    layer = compress({KEY: Difference(torch.zeros(4, 3))}, 0.6)[KEY]
    assert layer.down.shape == (1, 3) and not (layer.up @ layer.down).any()
    with pytest.raises(ModelError, match="--base BASE"):
        compress({KEY: Replacement(torch.ones(4, 3))}, 0.6)


@pytest.mark.parametrize("mid", [None, random(3, 3, 3, 3, seed=3)])
def test_compressing_a_convolution_keeps_its_kernel(mid):
    down = random(3, 5, 3, 3) if mid is None else random(3, 5, 1, 1)
    update, weight = LowRank(down, random(7, 3, 1, 1, seed=1), 6.0, mid), random(7, 5, 3, 3, seed=2)
    found = compress({"x": update}, 1.0)["x"].as_low_rank()
    assert (
        found is not None
        and found.down.shape[1:] == (5, 3, 3)
        and found.up.shape == (7, found.rank, 1, 1)
    )
    torch.testing.assert_close(delta(found, weight), delta(update, weight), rtol=1e-4, atol=1e-4)

"""Adapters whose two halves act in different branches of guidance: each as if it had been attached
alone.
"""

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach, fold
from konomi.adapters.branches import negative_branch
from konomi.adapters.kinds import LowRank
from konomi.errors import ModelError
from konomi.models.random_base import random_base

KEYS = (
    "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
)


def layers(base, seed, keys=KEYS):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key in keys:
        rows, columns = base.module(key).weight.shape
        down, up = (
            torch.randn(2, columns, generator=generator),
            torch.randn(rows, 2, generator=generator),
        )
        found[key] = LowRank(down * 0.1, up * 0.1, alpha=2.0)
    return found


def weights(base):
    return {key: base.module(key).weight.detach().clone() for key in KEYS}


def seen(base, adapters):
    """Weights of both branches while adapters are on."""
    with attach(base, adapters):
        positive = weights(base)
        with negative_branch(base):
            negative = weights(base)
        assert all(torch.equal(tensor, positive[key]) for key, tensor in weights(base).items())
    return positive, negative


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in KEYS)


@pytest.mark.parametrize("strength", [1.0, 0.5, -2.0])
def test_each_branch_is_what_its_own_adapter_makes(strength):
    base = random_base("sd1")
    original_base = weights(base)
    # The negative half touches other layers than the positive one, and one that both touch.
    positive, negative = (
        Adapter(layers=layers(base, 1, KEYS[:2])),
        Adapter(layers=layers(base, 2, KEYS[1:])),
    )
    both = Adapter(layers=positive.layers, negative=negative)
    strengths = Strengths(strength, strength)
    above, below = seen(base, [(both, strengths)])
    assert same(above, seen(base, [(positive, strengths)])[0])
    assert same(below, seen(base, [(negative, strengths)])[0])
    assert same(weights(base), original_base) and base.negative_weights == {}


def test_a_plain_adapter_beside_it_acts_in_both_branches():
    base = random_base("sd1")
    positive, negative, plain = (Adapter(layers=layers(base, seed)) for seed in (1, 2, 3))
    both = Adapter(layers=positive.layers, negative=negative)
    expected = [
        seen(base, [(one, Strengths()), (plain, Strengths())])[0] for one in (positive, negative)
    ]
    above, below = seen(base, [(both, Strengths()), (plain, Strengths())])
    assert same(above, expected[0]) and same(below, expected[1])
    # One attached after the other, in either order: the same to rounding.
    for first, second in ((both, plain), (plain, both)):
        with attach(base, [(first, Strengths())]):
            above, below = seen(base, [(second, Strengths())])
        for found, wanted in zip((above, below), expected):
            for key in KEYS:
                torch.testing.assert_close(found[key], wanted[key])
    assert base.negative_weights == {}


def test_strength_zero_is_the_base_in_both_branches_and_plain_adapters_keep_no_second_weights():
    base = random_base("sd1")
    original_base = weights(base)
    both = Adapter(layers=layers(base, 1), negative=Adapter(layers=layers(base, 2)))
    above, below = seen(base, [(both, Strengths(0.0, 0.0))])
    assert same(above, original_base) and same(below, original_base)
    with attach(base, [(Adapter(layers=both.layers), Strengths())]):
        assert base.negative_weights == {}


def test_folded_for_good_both_branches_stay():
    base = random_base("sd1")
    both = Adapter(layers=layers(base, 1), negative=Adapter(layers=layers(base, 2)))
    above, below = seen(base, [(both, Strengths())])
    fold(base, [(both, Strengths())])
    assert same(weights(base), above)
    with negative_branch(base):
        assert same(weights(base), below)


def test_a_negative_half_of_another_base_is_refused_before_anything_changes():
    base = random_base("sd1")
    original_base = weights(base)
    stranger = Adapter(
        layers={"denoiser.nowhere": LowRank(torch.ones(1, 4), torch.ones(4, 1), alpha=1.0)}
    )
    with pytest.raises(ModelError, match=r"has no layer denoiser\.nowhere"):
        attach(base, [(Adapter(layers=layers(base, 1), negative=stranger), Strengths())])
    assert same(weights(base), original_base) and base.negative_weights == {}

"""The closed-form merge against what defines it: the constraint, and the least change of all that
keep it.
"""

import pytest
import torch

from konomi.adapters.kinds import Replacement
from konomi.errors import ModelError
from konomi.merging.closed_form import RIDGE, constraints, merge, merge_layer

WIDTH, OUTPUTS = 12, 7
KEY = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(*weights, origin):
    return [{KEY: Replacement(weight.float(), origin.float())} for weight in weights]


def test_each_concept_keeps_its_answers_on_its_own_text():
    origin, first, second = (
        random(OUTPUTS, WIDTH),
        random(OUTPUTS, WIDTH, seed=1),
        random(OUTPUTS, WIDTH, seed=2),
    )
    one, two = random(3, WIDTH, seed=3), random(2, WIDTH, seed=4)
    merged = merge(layers(first, second, origin=origin), [one, two], random(50, WIDTH, seed=5))
    weight = merged.layers[KEY].weight.double()
    assert merged.largest_error < 1e-6
    torch.testing.assert_close(one @ weight.T, one @ first.float().double().T, rtol=0, atol=1e-4)
    torch.testing.assert_close(two @ weight.T, two @ second.float().double().T, rtol=0, atol=1e-4)


def test_no_other_weight_that_keeps_them_changes_ordinary_captions_less():
    """The oracle: the equality-constrained least squares problem, by its optimality conditions,
    row by row.
    """
    origin, first = random(OUTPUTS, WIDTH), random(OUTPUTS, WIDTH, seed=1)
    targets, ordinary = random(4, WIDTH, seed=3), random(50, WIDTH, seed=5)
    wanted = targets @ first.T
    ours = merge_layer(origin, wanted, constraints(ordinary, targets))
    c = ordinary.T @ ordinary
    c = c + torch.eye(WIDTH, dtype=c.dtype) * RIDGE * c.diagonal().mean()
    conditions = torch.zeros(WIDTH + 4, WIDTH + 4, dtype=c.dtype)
    conditions[:WIDTH, :WIDTH], conditions[:WIDTH, WIDTH:], conditions[WIDTH:, :WIDTH] = (
        c,
        targets.T,
        targets,
    )
    right = torch.cat([c @ origin.T, wanted])
    expected = torch.linalg.solve(conditions, right)[:WIDTH].T
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_what_is_said_twice_is_said_once():
    origin, first = random(OUTPUTS, WIDTH), random(OUTPUTS, WIDTH, seed=1)
    targets, ordinary = random(3, WIDTH, seed=3), random(50, WIDTH, seed=5)
    once = merge(layers(first, origin=origin), [targets], ordinary)
    twice = merge(layers(first, origin=origin), [torch.cat([targets, targets[:2]])], ordinary)
    torch.testing.assert_close(
        once.layers[KEY].weight, twice.layers[KEY].weight, rtol=1e-5, atol=1e-5
    )


def test_fewer_captions_than_the_states_are_wide_still_keep_the_constraint():
    origin, first = random(OUTPUTS, WIDTH), random(OUTPUTS, WIDTH, seed=1)
    merged = merge(
        layers(first, origin=origin), [random(3, WIDTH, seed=3)], random(5, WIDTH, seed=5)
    )
    assert merged.largest_error < 1e-5


def test_an_untrained_concept_changes_nothing():
    origin = random(OUTPUTS, WIDTH)
    merged = merge(
        layers(origin, origin=origin), [random(3, WIDTH, seed=3)], random(50, WIDTH, seed=5)
    )
    torch.testing.assert_close(merged.layers[KEY].weight, origin.float())


def test_a_layer_that_one_lacks_answers_there_as_the_base_does():
    origin, first = random(OUTPUTS, WIDTH), random(OUTPUTS, WIDTH, seed=1)
    one, two = random(3, WIDTH, seed=3), random(2, WIDTH, seed=4)
    (given,) = layers(first, origin=origin)
    weight = merge([given, {}], [one, two], random(50, WIDTH, seed=5)).layers[KEY].weight.double()
    torch.testing.assert_close(two @ weight.T, two @ origin.float().double().T, rtol=0, atol=1e-4)


def test_answers_that_contradict_each_other_are_named():
    origin, first, second = (
        random(OUTPUTS, WIDTH),
        random(OUTPUTS, WIDTH, seed=1),
        random(OUTPUTS, WIDTH, seed=2),
    )
    same = random(3, WIDTH, seed=3)
    with pytest.raises(ModelError, match="need different outputs for the same text"):
        merge(layers(first, second, origin=origin), [same, same], random(50, WIDTH, seed=5))

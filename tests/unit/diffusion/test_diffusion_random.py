"""The counter-based generator: published SplitMix64 values, statistics, and independence of how a
batch is cut.
"""

import math

import pytest
import torch

from konomi.diffusion.random import Rng, stable_hash

COUNT = 200_000


def keyed(*keys):
    return Rng(torch.tensor(keys, dtype=torch.int64))


def largest_gap(values, cumulative):
    """Kolmogorov-Smirnov distance, times sqrt(n): below 1.95 with probability 0.999."""
    n = len(values)
    expected = cumulative(values.double().sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max(
        (expected - steps[:-1]).max().item(), (steps[1:] - expected).max().item()
    ) * math.sqrt(n)


def test_bits_are_splitmix64():
    """Vigna's reference implementation seeded with 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    drawn = keyed(1234567).bits((5,))[0].tolist()
    assert [value % 2**64 for value in drawn] == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_normal_is_standard_normal(seed):
    values = Rng.for_step(seed, 3).fork("noise").normal((COUNT,))[0]
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert abs(values.mean()) < 4 / math.sqrt(COUNT)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / COUNT)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / COUNT)
    assert largest_gap(values, torch.special.ndtr) < 1.95
    assert 4.0 < values.abs().max() < 6.8


def test_both_halves_of_a_box_muller_pair_are_independent():
    values = Rng.for_step(5, 0).normal((COUNT,))[0]
    first, second = values.chunk(2)
    assert abs((first * second).mean()) < 4 / math.sqrt(COUNT / 2)
    assert abs((first**2 * second**2).mean() - 1) < 4 * math.sqrt(8 / (COUNT / 2))


def test_uniform_and_integers():
    rng = keyed(7)
    values = rng.uniform((COUNT,))[0]
    assert values.min() >= 0
    assert values.max() < 1
    assert largest_gap(values, lambda x: x) < 1.95
    drawn = rng.integers(-3, 7, (COUNT,))[0]
    counts = torch.bincount(drawn + 3, minlength=10)
    assert len(counts) == 10
    chi_square = ((counts - COUNT / 10) ** 2 / (COUNT / 10)).sum()
    assert chi_square < 27.9  # 9 degrees of freedom, 0.999.


def test_samples_steps_seeds_and_purposes_are_uncorrelated():
    streams = [
        Rng.for_step(0, 0).for_samples(torch.tensor([0, 1, 2])).normal((COUNT // 10,)),
        Rng.for_step(0, 1).for_samples(torch.tensor([0, 1, 2])).normal((COUNT // 10,)),
        Rng.for_step(1, 0).for_samples(torch.tensor([0, 1, 2])).normal((COUNT // 10,)),
        Rng.for_step(0, 0)
        .for_samples(torch.tensor([0, 1, 2]))
        .fork("other")
        .normal((COUNT // 10,)),
    ]
    correlation = torch.corrcoef(torch.cat(streams))
    assert (correlation - torch.eye(12)).abs().max() < 4.5 / math.sqrt(COUNT // 10)


def test_a_cut_batch_draws_what_the_whole_batch_draws():
    ids = torch.tensor([5, 9, 2, 40])
    whole = Rng.for_step(1, 2).for_samples(ids).fork("noise")
    parts = [Rng.for_step(1, 2).for_samples(part).fork("noise") for part in (ids[:1], ids[1:])]
    for draw in (
        lambda r: r.normal((4, 3, 3)),
        lambda r: r.uniform(),
        lambda r: r.integers(0, 1000),
    ):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))
    assert torch.equal(whole.normal((4, 3, 3)), whole.normal((4, 3, 3)))


def test_a_longer_draw_begins_as_a_shorter_one():
    rng = keyed(3, 4)
    assert torch.equal(rng.bits((10,))[:, :4], rng.bits((4,)))


def test_the_hash_is_the_same_everywhere():
    """Frozen: a changed value would change every published run."""
    assert stable_hash("step", 0, 0) == 4860897955283236894
    assert stable_hash("a", "b") != stable_hash("ab")
    assert -(2**63) <= stable_hash(1) < 2**63

"""The order of training: counts, uniformity, processes, prior images."""

from collections import Counter
from fractions import Fraction
from itertools import permutations
from math import factorial, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konomi.data.buckets import Bucket
from konomi.data.epoch import (
    PriorOrder,
    draws_per_bucket,
    plan_epoch,
    short_batches,
    split_step,
    steps_per_epoch,
)

BUCKETS: list[Bucket] = [(512, 512), (576, 448), (448, 576), (640, 384)]

datasets = st.lists(st.tuples(st.sampled_from(BUCKETS), st.integers(1, 7)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(datasets, st.integers(1, 9), st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_every_image_is_seen_exactly_its_repeats(
    data: list[tuple[Bucket, int]], batch_size: int, seed: int, epoch: int
) -> None:
    buckets, repeats = [bucket for bucket, _ in data], [repeat for _, repeat in data]
    plan = plan_epoch(buckets, repeats, batch_size, seed, epoch)
    counts = draws_per_bucket(buckets, repeats)
    assert len(plan) == len(list(plan)) == steps_per_epoch(counts.values(), batch_size)
    seen = Counter(
        (sample, repeat) for step in plan for sample, repeat in zip(step.samples, step.repeats)
    )
    assert seen == Counter((i, r) for i, repeat in enumerate(repeats) for r in range(repeat))
    short = 0
    before = 0
    for step in plan:
        assert len({buckets[sample] for sample in step.samples}) == 1
        assert 1 <= len(step) <= batch_size
        assert step.first == before
        before += len(step)
        short += len(step) < batch_size
    assert short == short_batches(counts.values(), batch_size)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    arguments = [(512, 512)] * 20, [2] * 20, 3
    orders = {
        (seed, epoch): tuple(step.samples for step in plan_epoch(*arguments, seed, epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(step.samples for step in plan_epoch(*arguments, 0, 1))


def test_order_does_not_change_between_versions() -> None:
    """A resumed run may be continued by a later version: the very numbers are part of the
    format.
    """
    plan = plan_epoch([(512, 512)] * 4 + [(576, 448)] * 3, [1, 2, 1, 1, 1, 1, 1], 2, 42, 3)
    assert [(step.samples, step.repeats) for step in plan] == [
        ((2,), (0,)),
        ((1, 3), (1, 0)),
        ((5, 4), (0, 0)),
        ((6,), (0,)),
        ((0, 1), (0, 0)),
    ]


def test_sequences_of_buckets_are_as_likely_as_novelai_draws_them() -> None:
    """NovelAI draws a bucket with probability proportional to the images it still holds."""
    batches = {"a": 2, "b": 2, "c": 1}

    def probability(sequence: tuple[str, ...]) -> Fraction:
        left = dict(batches)
        result = Fraction(1)
        for bucket in sequence:
            result *= Fraction(left[bucket], sum(left.values()))
            left[bucket] -= 1
        return result

    sequences = set(permutations("aabbc"))
    uniform = Fraction(prod(factorial(n) for n in batches.values()), factorial(5))
    assert all(probability(sequence) == uniform for sequence in sequences)
    # And ours are uniform: chi-square over 30 sequences, 99.9 % point for 29 degrees of freedom is
    # 58.3.
    names = {(512, 512): "a", (576, 448): "b", (448, 576): "c"}
    samples = [bucket for bucket, name in names.items() for _ in range(batches[name] * 2)]
    count = 1500
    seen = Counter(
        tuple(names[samples[step.samples[0]]] for step in plan_epoch(samples, [1] * 10, 2, seed, 0))
        for seed in range(count)
    )
    assert set(seen) == sequences
    expected = count / len(sequences)
    assert sum((seen[sequence] - expected) ** 2 / expected for sequence in sequences) < 58.3


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_parts_of_a_step_cover_it_once(count: int, world: int, accumulation: int) -> None:
    step = list(range(count))
    parts = [part for rank in range(world) for part in split_step(step, rank, world, accumulation)]
    assert sorted(item for part, _ in parts for item in step[part]) == step
    assert sum(weight for _, weight in parts) == pytest.approx(1.0, abs=1e-12)
    assert all(weight == len(step[part]) / count for part, weight in parts)
    sizes = [len(step[part]) for part, _ in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert all(
        len(split_step(step, rank, world, accumulation)) <= accumulation for rank in range(world)
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=12),
    st.integers(1, 6),
    st.lists(st.integers(1, 6), max_size=30),
)
def test_prior_images_of_one_bucket_are_cycled(
    repeats: list[int], batch_size: int, counts: list[int]
) -> None:
    order = PriorOrder([(512, 512)] * len(repeats), repeats, batch_size, 7)
    position, drawn = 0, []
    for count in counts:
        samples, numbers = order.draws(position, count)
        assert len(samples) == len(numbers) == count
        drawn += list(zip(samples, numbers))
        position += count
    assert len(set(drawn)) == len(drawn), "the number of the repeat counts on over the passes"
    size = sum(repeats)
    for start in range(0, len(drawn) - size + 1, size):
        uses = Counter(sample for sample, _ in drawn[start : start + size])
        assert uses == Counter(dict(enumerate(repeats)))


def test_prior_images_of_a_step_share_a_bucket_and_are_used_evenly() -> None:
    buckets = [(512, 512)] * 5 + [(640, 384)] * 4 + [(384, 640)]
    order = PriorOrder(buckets, [1] * 10, 4, 0)
    uses: Counter[int] = Counter()
    for position in range(0, 4000, 4):
        samples, _ = order.draws(position, 4)
        assert len({buckets[sample] for sample in samples}) == 1
        uses.update(samples)
    # A single image of a bucket fills whole steps when its turn comes.
    assert set(uses) == set(range(10))
    assert max(uses.values()) < 2 * min(uses.values())


def test_prior_draws_are_random_access() -> None:
    arguments = [(512, 512)] * 5 + [(640, 384)] * 3, [1] * 8, 2, 3
    forward = PriorOrder(*arguments)
    expected = [forward.draws(position, 2) for position in range(0, 60, 2)]
    for index in (29, 3, 17):
        assert PriorOrder(*arguments).draws(2 * index, 2) == expected[index]

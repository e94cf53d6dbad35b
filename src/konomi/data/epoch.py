"""The order of training, as pure functions: which images make up step s, on which process, in
which pass.

An epoch is a sequence of optimiser steps. Each step holds draws of one bucket; a draw is an image
and the number of its repeat. Every image is drawn exactly `repeats` times per epoch: what does not
fill a batch forms a short one. Nothing depends on earlier steps, so step s can be asked for at any
time, by any process.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from konomi.data.buckets import Bucket
from konomi.diffusion.random import Rng, stable_hash

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class EpochStep:
    """One optimiser step: draws of one bucket."""

    samples: tuple[int, ...]
    """Index of each image."""
    repeats: tuple[int, ...]
    """Which of the image's repeats each draw is, from 0."""
    first: int
    """Draws of this epoch before this step."""

    def __len__(self) -> int:
        return len(self.samples)


class Epoch(Sequence[EpochStep]):
    """The steps of one epoch, kept as a few arrays: 100,000 images cost a few megabytes."""

    def __init__(
        self, samples: NDArray[np.int64], repeats: NDArray[np.int64], starts: list[int]
    ) -> None:
        self.samples = samples
        self.repeats = repeats
        self._starts = starts
        """First draw of each step, and the number of draws at the end."""

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> EpochStep:  # type: ignore[override]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, stop = self._starts[index], self._starts[index + 1]
        return EpochStep(
            tuple(self.samples[start:stop].tolist()),
            tuple(self.repeats[start:stop].tolist()),
            start,
        )

    def __iter__(self) -> Iterator[EpochStep]:
        return (self[index] for index in range(len(self)))


def plan_epoch(
    bucket_of_sample: Sequence[Bucket],
    repeats: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
) -> Epoch:
    """The order of one epoch, a function of its arguments alone.

    Within a bucket the draws are permuted and cut into batches; then all batches are permuted. For
    full batches that is NovelAI's order, "a bucket with probability proportional to what it still
    holds": drawing so, one after another, makes every sequence of buckets equally likely, and so
    does a permutation. A short batch takes any place among them.
    """
    counts = np.asarray(repeats, dtype=np.int64)
    ends = np.cumsum(counts)
    batches: list[NDArray[np.int64]] = []
    for bucket, members in sorted(_members(bucket_of_sample).items()):
        draws = np.concatenate([np.arange(ends[m] - counts[m], ends[m]) for m in members])
        order = draws[_permutation(len(draws), stable_hash("epoch", seed, epoch, bucket))]
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if not batches:
        return Epoch(np.empty(0, np.int64), np.empty(0, np.int64), [0])
    batches = [
        batches[i] for i in _permutation(len(batches), stable_hash("epoch", seed, epoch, "batches"))
    ]
    order = np.concatenate(batches)
    samples = np.searchsorted(ends, order, side="right")
    starts = np.cumsum([0] + [len(batch) for batch in batches]).tolist()
    return Epoch(samples, order - (ends - counts)[samples], starts)


def _members(bucket_of_sample: Sequence[Bucket]) -> dict[Bucket, list[int]]:
    members: dict[Bucket, list[int]] = {}
    for index, bucket in enumerate(bucket_of_sample):
        members.setdefault(bucket, []).append(index)
    return members


def _permutation(count: int, key: int) -> NDArray[np.int64]:
    """A uniform permutation from konomi's own generator: numpy's and torch's may change between
    versions.
    """
    bits = Rng(torch.tensor([key], dtype=torch.int64)).bits((count,))[0].numpy()
    return np.argsort(bits, kind="stable")


def draws_per_bucket(
    bucket_of_sample: Sequence[Bucket], repeats: Sequence[int]
) -> dict[Bucket, int]:
    """Images times repeats of each bucket."""
    counts: dict[Bucket, int] = {}
    for bucket, repeat in zip(bucket_of_sample, repeats, strict=True):
        counts[bucket] = counts.get(bucket, 0) + repeat
    return counts


def steps_per_epoch(counts: Iterable[int], batch_size: int) -> int:
    """Optimiser steps of one epoch, from the draws of each bucket. Processes and accumulation do
    not change it.
    """
    return sum(-(-count // batch_size) for count in counts)


def short_batches(counts: Iterable[int], batch_size: int) -> int:
    """How many steps of an epoch hold less than a full batch."""
    return sum(1 for count in counts if count % batch_size)


def split_step(
    step: Sequence[Item], rank: int, world: int, accumulation: int
) -> tuple[tuple[slice, float], ...]:
    """The parts of a step that process `rank` of `world` computes, in up to `accumulation`
    micro-batches.

    Returns (slice of the step, weight) with weight = part / whole, for parts that are not empty.
    Over all processes the slices cover the step once and the weights add up to 1. Sizes differ by
    at most one; a process may get nothing.
    """
    parts = world * accumulation
    size, longer = divmod(len(step), parts)
    result = []
    for index in range(rank, parts, world):
        start = index * size + min(index, longer)
        stop = start + size + (index < longer)
        if stop > start:
            result.append((slice(start, stop), (stop - start) / len(step)))
    return tuple(result)


class PriorOrder:
    """The endless order of prior (class) images beside the subjects: as many as subjects, all of
    one bucket.

    Passes over the pool follow one another, each in a new order (a planned epoch). The step whose
    subjects start at number p of the run takes the draw at p and the next ones of the same bucket.
    With one bucket this is a plain cycle: every prior image is used once before any is used again.
    With several, a step that reaches the end of a batch takes later images of its bucket early, so
    that uses are even only on average.
    """

    def __init__(
        self, bucket_of_sample: Sequence[Bucket], repeats: Sequence[int], batch_size: int, seed: int
    ) -> None:
        self._arguments = (
            tuple(bucket_of_sample),
            tuple(repeats),
            batch_size,
            stable_hash("prior", seed),
        )
        names = {bucket: number for number, bucket in enumerate(dict.fromkeys(bucket_of_sample))}
        self._bucket = np.array([names[bucket] for bucket in bucket_of_sample], dtype=np.int64)
        self._repeats = np.asarray(repeats, dtype=np.int64)
        self._size = sum(repeats)
        self._passes: dict[int, Epoch] = {}

    def draws(self, position: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Images and repeat numbers (counted on over the passes) beside the `count` subjects from
        `position` on.
        """
        number, offset = divmod(position, self._size)
        bucket = self._bucket[self._pass(number).samples[offset]]
        samples: list[int] = []
        repeats: list[int] = []
        while len(samples) < count:
            order = self._pass(number)
            rest = order.samples[offset:]
            same = np.flatnonzero(self._bucket[rest] == bucket)[: count - len(samples)]
            samples += rest[same].tolist()
            repeats += (order.repeats[offset:][same] + number * self._repeats[rest[same]]).tolist()
            number, offset = number + 1, 0
        return tuple(samples), tuple(repeats)

    def _pass(self, number: int) -> Epoch:
        order = self._passes.get(number)
        if order is None:
            order = plan_epoch(*self._arguments, number)
            # Threads may look at two passes at a time where one ends; older ones are not needed
            # again in a row.
            self._passes = dict([*self._passes.items()][-2:]) | {number: order}
        return order

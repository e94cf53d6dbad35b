"""Batches as a function of the step's number: what a step sees depends on data, recipe, seed and
step, nothing else.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from konomi.config.sections import DataConfig
from konomi.data.batch import Batch, Examples, Latents
from konomi.data.buckets import Assignment, Bucket
from konomi.data.captions import caption_varies, final_caption
from konomi.data.crops import (
    Crop,
    LoadImage,
    cached_crop,
    fresh_crop,
    image_loader,
    num_crops,
)
from konomi.data.epoch import (
    Epoch,
    EpochStep,
    PriorOrder,
    draws_per_bucket,
    plan_epoch,
    split_step,
    steps_per_epoch,
)
from konomi.data.latent_cache import LatentCache
from konomi.data.manifest import Record
from konomi.data.prefetch import prefetch
from konomi.data.text_cache import TextCache
from konomi.diffusion.random import stable_hash
from konomi.errors import DataError, printable
from konomi.hardware.garbage_collection import gc_paused


@dataclass(frozen=True, slots=True)
class _Pool:
    """The images of one role."""

    records: tuple[Record, ...]
    buckets: tuple[Bucket, ...]
    names: tuple[tuple[object, ...], ...]
    """What tells each image from all others, the same whatever else is in the data."""
    captions: tuple[str | None, ...]
    """The caption of an image where it is always the same."""


class BatchStream:
    """Optimiser steps over an assignment's images: subjects, and beside them prior images where
    there are any.

    Latents come from the cache where one is given; else pixels are read in every step, with a cut
    drawn anew. Text states come from their cache for captions it was built with. With `pixels`,
    the pixels of the very cut are there as well. Raises DataError where there is nothing to train
    on.
    """

    def __init__(
        self,
        assignment: Assignment,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        latents: LatentCache | None = None,
        text: TextCache | None = None,
        pixels: bool = False,
        load_image: LoadImage | None = None,
    ) -> None:
        self._config = config
        self._seed = seed
        self._latents = latents
        self._text = text
        self._pixels = pixels or latents is None
        self._load_image = load_image or image_loader(config.images)
        self._pin = torch.cuda.is_available()
        self._subjects = _pool(assignment, "train", config)
        self._priors = _pool(assignment, "prior", config)
        if not self._subjects.records:
            raise DataError(
                "There is no image to train on. `konomi check` lists what was left out, and why."
            )
        self._numbers = tuple(map(image_number, self._subjects.records))
        repeats = tuple(record.repeats for record in self._subjects.records)
        self._plan = partial(plan_epoch, self._subjects.buckets, repeats, batch_size, seed)
        self._epochs: dict[int, Epoch] = {}
        counts = draws_per_bucket(self._subjects.buckets, repeats)
        self.draws_per_epoch = sum(counts.values())
        """Images times repeats."""
        self.steps_per_epoch = steps_per_epoch(counts.values(), batch_size)
        """Optimiser steps in which every image is seen `repeats` times."""
        self._prior_order: PriorOrder | None = None
        if self._priors.records:
            prior_repeats = [record.repeats for record in self._priors.records]
            self._prior_order = PriorOrder(self._priors.buckets, prior_repeats, batch_size, seed)

    def step(
        self, step: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> tuple[Batch, ...]:
        """The micro-batches of process `rank` for one optimiser step, counted from 0 over the whole
        run.

        At most `accumulation` of them, and none for a process to which the step gives nothing.
        Over all processes their weights add up to 1. Raises DataError naming a file that cannot be
        read, RunError for a damaged cache.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        drawn = self._epoch(epoch)[index]
        priors = None
        if self._prior_order is not None:
            priors = self._prior_order.draws(epoch * self.draws_per_epoch + drawn.first, len(drawn))
        images = tuple(self._numbers[sample] for sample in drawn.samples)
        batches = []
        for part, weight in split_step(drawn.samples, rank, world, accumulation):
            subject = self._examples(
                self._subjects, drawn.samples[part], drawn.repeats[part], epoch
            )
            prior = None
            if priors is not None:
                # Repeats count on over the passes through the prior images, so they need no epoch.
                prior = self._examples(self._priors, priors[0][part], priors[1][part], 0)
            batch = Batch(subject, prior, weight, part.start, images)
            batches.append(_pinned(batch) if self._pin else batch)
        return tuple(batches)

    def iterate(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Generator[tuple[Batch, ...], None, None]:
        """Steps from `start` up to `stop`. Where images are read, `data.workers` threads prepare
        them ahead.

        No result depends on the threads. Closing the generator ends them; an error is raised at
        its own step.
        """
        # Gathering rows of a cache takes some 50 microseconds, less than waiting for a thread.
        workers = self._config.workers if self._pixels else 0
        make = partial(self.step, rank=rank, world=world, accumulation=accumulation)
        return prefetch(make, range(start, stop), workers=workers, depth=max(2, 2 * workers))

    def names(self, step: int) -> tuple[str, ...]:
        """The subjects of a step, over all processes, for messages."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return tuple(
            self._subjects.records[sample].name for sample in self._epoch(epoch)[index].samples
        )

    def plan(self, step: int) -> EpochStep:
        """The subjects of a step, as indices among the training images."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _epoch(self, number: int) -> Epoch:
        plan = self._epochs.get(number)
        if plan is None:
            plan = self._plan(number)
            # Threads at the end of an epoch look at two; the dictionary is replaced, never
            # changed, for their sake.
            self._epochs = dict(sorted(self._epochs.items())[-1:]) | {number: plan}
        return plan

    def _examples(
        self, pool: _Pool, samples: Sequence[int], repeats: Sequence[int], epoch: int
    ) -> Examples:
        ids = [stable_hash(*pool.names[sample], repeat) for sample, repeat in zip(samples, repeats)]
        keys = [stable_hash("variation", self._seed, epoch, identity) for identity in ids]
        captions = tuple(self._caption(pool, sample, key) for sample, key in zip(samples, keys))
        records = [pool.records[sample] for sample in samples]
        examples = Examples(
            names=tuple(record.name for record in records),
            sample_ids=torch.tensor(ids, dtype=torch.int64),
            captions=captions,
            sizes=_NO_SIZES,
            text=None if self._text is None else self._text.get(captions),
            class_nouns=tuple(record.class_noun for record in records),
        )
        bucket = pool.buckets[samples[0]]
        crops = [self._crop(record, key) for record, key in zip(records, keys)]
        if self._latents is not None:
            examples = _with_latents(examples, self._latents, records, bucket, crops)
        if self._pixels:
            examples = _with_pixels(examples, self._load_image, records, bucket, crops)
        return examples

    def _caption(self, pool: _Pool, sample: int, key: int) -> str:
        fixed = pool.captions[sample]
        return (
            final_caption(pool.records[sample], self._config.captions, key)
            if fixed is None
            else fixed
        )

    def _crop(self, record: Record, key: int) -> Crop:
        images = self._config.images
        if self._latents is None:
            return fresh_crop(images, key)
        count = num_crops(images)
        return cached_crop(
            images, record.content, stable_hash("variant", key) % count if count > 1 else 0
        )


def image_number(record: Record) -> int:
    """What an image is called in the log of losses: a number of 63 bits, from content and name,
    whatever else is in the data.
    """
    return stable_hash("image", record.content, record.name) & (2**63 - 1)


@gc_paused()
def static_captions(records: Sequence[Record], config: DataConfig) -> tuple[frozenset[str], bool]:
    """The captions that come again and again, and whether these are all that training will see.

    If not (tags shuffled or dropped), some captions are encoded with the step that needs them.
    """
    captions: set[str] = set()
    complete = True
    plain = replace(config.captions, dropout=0.0)
    for record in records:
        several = len(record.captions) > 1
        for one in (
            [replace(record, captions=(c,)) for c in record.captions] if several else [record]
        ):
            if caption_varies(one, plain):
                complete = False
            else:
                captions.add(final_caption(one, plain, 0))
    if config.captions.dropout:
        captions.add("")
    return frozenset(captions), complete


_NO_SIZES = torch.empty((0, 6), dtype=torch.int64)


@gc_paused()
def _pool(assignment: Assignment, role: str, config: DataConfig) -> _Pool:
    records, buckets, names, captions = [], [], [], []
    seen: dict[tuple[object, ...], int] = {}
    for record, bucket in zip(assignment.records, assignment.buckets, strict=True):
        if record.role != role:
            continue
        name = (record.content, printable(record.name))
        number = seen[name] = seen.get(name, -1) + 1
        records.append(record)
        buckets.append(bucket)
        # The same file under the same name in two sources is two samples.
        names.append(name if number == 0 else (*name, "again", number))
        captions.append(
            None
            if caption_varies(record, config.captions)
            else final_caption(record, config.captions, 0)
        )
    return _Pool(tuple(records), tuple(buckets), tuple(names), tuple(captions))


def _with_latents(
    examples: Examples,
    cache: LatentCache,
    records: Sequence[Record],
    bucket: Bucket,
    crops: Sequence[Crop],
) -> Examples:
    rows = [cache.get(record, bucket, crop) for record, crop in zip(records, crops)]
    return replace(
        examples,
        sizes=torch.stack([row.sizes for row in rows]),
        latents=Latents(
            torch.stack([row.mean for row in rows]).float(),
            torch.stack([row.std for row in rows]).float(),
        ),
        loss_mask=_stacked_masks([row.mask for row in rows]),
    )


def _with_pixels(
    examples: Examples,
    load_image: LoadImage,
    records: Sequence[Record],
    bucket: Bucket,
    crops: Sequence[Crop],
) -> Examples:
    images = [load_image(record, bucket, crop) for record, crop in zip(records, crops)]
    return replace(
        examples,
        sizes=torch.tensor([image.sizes for image in images], dtype=torch.int64),
        pixels=torch.stack([image.pixels for image in images]),
        loss_mask=_stacked_masks([image.mask for image in images]),
    )


def _stacked_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """[B, 1, h, w]; images without a mask count everywhere."""
    if all(mask is None for mask in masks):
        return None
    whole = torch.ones_like(next(mask for mask in masks if mask is not None))
    return torch.stack([whole if mask is None else mask for mask in masks])


def _pinned(batch: Batch) -> Batch:
    """In page-locked memory, from which copies to a CUDA device do not hold up the host."""
    prior = None if batch.prior is None else _pinned_examples(batch.prior)
    return replace(batch, subject=_pinned_examples(batch.subject), prior=prior)


def _pinned_examples(examples: Examples) -> Examples:
    latents, text = examples.latents, examples.text
    return replace(
        examples,
        sample_ids=examples.sample_ids.pin_memory(),
        sizes=examples.sizes.pin_memory(),
        pixels=_pin(examples.pixels),
        latents=None
        if latents is None
        else Latents(latents.mean.pin_memory(), latents.std.pin_memory()),
        text=None
        if text is None
        else replace(text, states=text.states.pin_memory(), pooled=_pin(text.pooled)),
        loss_mask=_pin(examples.loss_mask),
    )


def _pin(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.pin_memory()

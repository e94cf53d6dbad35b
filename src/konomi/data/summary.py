"""What a run will do with its data, before it starts: the table and the sentence of `konomi
check`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from konomi.config.sections import CaptionConfig, DataConfig
from konomi.data.buckets import Assignment, Bucket
from konomi.data.captions import final_caption
from konomi.data.epoch import draws_per_bucket, short_batches, steps_per_epoch
from konomi.data.manifest import Excluded, Finding, Manifest, Record
from konomi.hardware.garbage_collection import gc_paused


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """One image as training will see it."""

    name: str
    role: str
    caption: str
    """The first, whole and in order, where captions vary."""
    size: Bucket
    """Width, height in pixels."""
    bucket: Bucket
    crop: tuple[int, int, int, int]
    """What is seen of the image (with a centre crop), in its own pixels: left, top, right,
    bottom."""
    repeats: int


class ImageSummaries(Sequence[ImageSummary]):
    """All images of an assignment, each made when it is looked at: nobody looks at a hundred
    thousand.
    """

    def __init__(self, assignment: Assignment, captions: CaptionConfig) -> None:
        self._assignment = assignment
        self._captions = captions

    def __len__(self) -> int:
        return len(self._assignment.records)

    @overload
    def __getitem__(self, index: int) -> ImageSummary: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageSummary]: ...
    def __getitem__(self, index: int | slice) -> ImageSummary | Sequence[ImageSummary]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        record, bucket = self._assignment.records[index], self._assignment.buckets[index]
        return ImageSummary(
            name=record.name,
            role=record.role,
            caption=final_caption(record, self._captions, None),
            size=(record.width, record.height),
            bucket=bucket,
            crop=centre_crop((record.width, record.height), bucket),
            repeats=record.repeats,
        )

    @property
    def any_cut(self) -> bool:
        """Whether of any image something is cut off."""
        records, buckets = self._assignment.records, self._assignment.buckets
        shapes = {(record.width, record.height, bucket) for record, bucket in zip(records, buckets)}
        return any(centre_crop((w, h), bucket) != (0, 0, w, h) for w, h, bucket in shapes)


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Everything `konomi check` shows of the data."""

    images: ImageSummaries
    excluded: tuple[Excluded, ...]
    findings: tuple[Finding, ...]
    bucket_counts: dict[Bucket, int]
    """Training images times repeats of each bucket."""
    steps_per_epoch: int
    steps: int
    """Of the whole run."""
    sentence: str
    """How the number of steps comes about."""


@gc_paused()
def dataset_summary(
    manifest: Manifest,
    assignment: Assignment,
    config: DataConfig,
    *,
    batch_size: int,
    steps: int = 0,
    epochs: int = 0,
    class_images: int = 0,
) -> DatasetSummary:
    """The summary of an assignment; `steps` or `epochs` are the run's totals (`steps` wins, as in
    a recipe). `class_images`: prior images that will be made first and are not in the assignment
    yet.
    """
    train = [(r, b) for r, b in zip(assignment.records, assignment.buckets) if r.role == "train"]
    counts = draws_per_bucket(
        [bucket for _, bucket in train], [record.repeats for record, _ in train]
    )
    per_epoch = steps_per_epoch(counts.values(), batch_size)
    return DatasetSummary(
        images=ImageSummaries(assignment, config.captions),
        excluded=tuple(dict.fromkeys(manifest.excluded + assignment.excluded)),
        findings=manifest.findings,
        bucket_counts=counts,
        steps_per_epoch=per_epoch,
        steps=steps or per_epoch * epochs,
        sentence=steps_sentence(
            assignment, batch_size=batch_size, steps=steps, epochs=epochs, class_images=class_images
        ),
    )


def steps_sentence(
    assignment: Assignment,
    *,
    batch_size: int,
    steps: int = 0,
    epochs: int = 0,
    class_images: int = 0,
) -> str:
    """`14 images x 10 repeats x 10 epochs / batch 2 = 700 steps`, counted as training counts.

    Where the division leaves a rest, the short batches that make up the difference are named. With
    `steps` given, the sentence tells how many epochs they are. Prior images are counted with the
    `class_images` that are still to be made.
    """
    train = [record for record in assignment.records if record.role == "train"]
    buckets = [b for r, b in zip(assignment.records, assignment.buckets) if r.role == "train"]
    counts = draws_per_bucket(buckets, [record.repeats for record in train])
    per_epoch = steps_per_epoch(counts.values(), batch_size)
    if not per_epoch:
        return "No image to train on = 0 steps"
    remark = _remark(len(counts), short_batches(counts.values(), batch_size))
    priors = class_images + sum(record.role == "prior" for record in assignment.records)
    beside = f"; beside each image one of {_count(priors, 'prior image')}" if priors else ""
    images = _images(train)
    if not steps:
        total = _count(per_epoch * epochs, "step")
        return (
            f"{images} x {_count(epochs, 'epoch')} / batch {batch_size} = {total}{remark}{beside}"
        )
    whole, rest = divmod(steps, per_epoch)
    share = f"about {steps / per_epoch:.2f} epochs" if rest else _count(whole, "epoch")
    epoch = f"{images} / batch {batch_size} = {_count(per_epoch, 'step')} an epoch{remark}"
    return f"{epoch}; {_count(steps, 'step')} = {share}{beside}"


def centre_crop(size: Bucket, bucket: Bucket) -> tuple[int, int, int, int]:
    """The part of an image that a centre crop to the bucket's shape keeps, in its own pixels,
    rounded.
    """
    width, height = size
    scale = max(bucket[0] / width, bucket[1] / height)
    seen = min(width, bucket[0] / scale), min(height, bucket[1] / scale)
    left, top = (width - seen[0]) / 2, (height - seen[1]) / 2
    return round(left), round(top), round(left + seen[0]), round(top + seen[1])


def _images(train: Sequence[Record]) -> str:
    repeats = {record.repeats for record in train}
    images = _count(len(train), "image")
    if len(repeats) == 1:
        return f"{images} x {_count(repeats.pop(), 'repeat')}"
    return f"{images} ({sum(record.repeats for record in train)} with their repeats)"


def _remark(buckets: int, short: int) -> str:
    if not short:
        return ""
    batches = "1 short batch" if short == 1 else f"{short} short batches"
    return f" ({_count(buckets, 'bucket')}; {batches} in each epoch)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

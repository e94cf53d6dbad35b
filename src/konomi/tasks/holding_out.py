"""Images that are measured and not trained on: which they are, and how they are seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.manifest import Record
from konomi.data.remembered import remembered_scan
from konomi.diffusion.random import stable_hash
from konomi.errors import DataError

Split = tuple[tuple[Record, ...], tuple[Record, ...], tuple[str, ...]]
"""Records to train on, records to measure, and what is to be said about them."""


def split_off(records: tuple[Record, ...], recipe: Recipe, memory: Path) -> Split:
    """Divide a manifest's records as the recipe asks for it. No picture is on both sides, under
    whatever name.

    `memory` is the cache folder.

    Raises DataError where there is nothing to measure, or nothing would be left to train on.
    """
    if not recipe.run.validate_every:
        return records, (), ()
    if recipe.validation.path:
        return _given(records, recipe, memory)
    return _hold_out(records, recipe)


def as_measured(data: DataConfig) -> DataConfig:
    """The data section for measuring: every picture whole and as it is, with its caption whole and
    in order.
    """
    captions = replace(data.captions, shuffle=False, tag_dropout=0.0, dropout=0.0)
    images = replace(data.images, crop="center", crops=1, flip=False)
    return replace(data, captions=captions, images=images)


def as_measured_record(record: Record) -> Record:
    """An image once, with the first of its captions."""
    return replace(record, role="train", repeats=1, shuffle=False, captions=record.captions[:1])


def _hold_out(records: tuple[Record, ...], recipe: Recipe) -> Split:
    """Split off images by a hash of their content: the same images whatever else is in the folder,
    and all copies.
    """
    training = Counter(record.content for record in records if record.role == "train")
    contents = sorted(training, key=lambda content: stable_hash("hold out", content))
    count = max(1, round(recipe.validation.fraction * len(contents)))
    if len(contents) <= count:
        raise DataError(
            f"run.validate_every is set, but {len(contents)} different images are too few to hold "
            "some out. Set run.validate_every = 0, or give other images in validation.path."
        )
    chosen = set(contents[:count])
    copies = sum(record.content in chosen for record in records) - count
    notes: tuple[str, ...] = ()
    if copies:
        notes = (
            f"{count} of {len(contents)} images are held out for validation, and with them "
            f"{_counted(copies)} of them under other names: a loss on what was trained on would "
            "say nothing.",
        )
    once = {record.content: record for record in reversed(records) if record.role == "train"}
    return (
        tuple(r for r in records if r.content not in chosen),
        tuple(once[c] for c in contents[:count]),
        notes,
    )


def _given(records: tuple[Record, ...], recipe: Recipe, memory: Path) -> Split:
    """The images of `validation.path`, worded as training words its own, without those that are
    trained on.
    """
    source = SourceConfig(path=recipe.validation.path)
    found = remembered_scan(replace(recipe.data, sources=(source,)), memory).records
    trained = {record.content for record in records}
    validation = [record for record in found if record.content not in trained]
    if not validation:
        raise DataError(
            f"{recipe.validation.path}: every image in it is among the training images as well, so "
            "a loss on them would say nothing. Take some out of the training images, or set "
            "run.validate_every = 0."
        )
    notes = []
    if dropped := len(found) - len(validation):
        notes.append(
            f"{dropped} of {len(found)} images in {recipe.validation.path} are among the training "
            "images, and are not validated on: a loss on what was trained on would say nothing."
        )
    wording, several = _wording(records)
    if several and any(not record.captions for record in validation):
        words = " ".join(filter(None, wording[:2]))
        notes.append(
            f"validation images without caption are worded like most training images: {words!r}."
        )
    return records, tuple(_worded(record, wording) for record in validation), tuple(notes)


def _wording(records: Sequence[Record]) -> tuple[tuple[str, str, str], bool]:
    """(trigger, class noun, template) of most training images, and whether others have other
    ones.
    """
    found = Counter((r.trigger, r.class_noun, r.template) for r in records if r.role == "train")
    return found.most_common(1)[0][0], len(found) > 1


def _worded(record: Record, wording: tuple[str, str, str]) -> Record:
    trigger, class_noun, template = wording
    return replace(
        record,
        trigger=record.trigger or trigger,
        class_noun=record.class_noun or class_noun,
        template=record.template or template,
    )


def _counted(copies: int) -> str:
    return "a copy" if copies == 1 else f"{copies} copies"

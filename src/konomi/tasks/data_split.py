"""Images that are not trained on: those whose loss is measured, those that finished pictures are
compared with, and how they are seen.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.manifest import Record, first_names
from konomi.data.scan_cache import cached_scan
from konomi.diffusion.random import stable_hash
from konomi.errors import DataError, RecipeError
from konomi.methods.method import Needs

ENOUGH = 8
"""Different training images of a subject from which on some are kept for the evaluation."""
SHARE = 8
"""One in so many."""
MOST = 16
"""More references than these make a score no surer, and cost what could be learned from them."""


@dataclass(frozen=True, slots=True)
class Split:
    """A manifest's records, divided. No picture is trained on and held out, under whatever name."""

    training: tuple[Record, ...]
    validation: tuple[Record, ...] = ()
    """Their loss is measured while training."""
    references: tuple[Record, ...] = ()
    """Finished pictures are compared with them: those of `validation` where there are such."""
    notes: tuple[str, ...] = ()
    """What is to be said about them."""


def split_records(records: tuple[Record, ...], recipe: Recipe, cache: Path) -> Split:
    """Divide a manifest's records as the recipe asks for it.

    `cache` is the cache folder.

    Raises DataError where there is nothing to validate on, or nothing would be left to train on.
    """
    if recipe.run.validate_every:
        given = bool(recipe.validation.path)
        return _given(records, recipe, cache) if given else _hold_out(records, recipe)
    if recipe.evaluation.hold_out == "off":
        return Split(records)
    return _references(records)


def holds_out_none(records: tuple[Record, ...] | list[Record]) -> bool:
    """Whether `evaluation.hold_out` changes nothing: too few images of every subject."""
    return not _references(tuple(records)).references


def _references(records: tuple[Record, ...]) -> Split:
    """Keep one in eight images of each subject for the evaluation, with all their copies."""
    subjects: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record.role == "train":
            pictures = subjects.setdefault((record.trigger, record.class_noun), {})
            pictures.setdefault(record.content, record)
    kept = [
        pictures[content]
        for pictures in subjects.values()
        if len(pictures) >= ENOUGH
        for content in _by_content(pictures)[: min(len(pictures) // SHARE, MOST)]
    ]
    if not kept:
        return Split(records)
    contents = {record.content for record in kept}
    training = tuple(record for record in records if record.content not in contents)
    total = len({record.content for record in records if record.role == "train"})
    note = (
        f"{len(contents)} of {total} different images are not trained on, so that results can be "
        f"compared with them ({first_names(sorted(record.name for record in kept))}). "
        'evaluation.hold_out = "off" trains on all.'
    )
    return Split(training, references=tuple(kept), notes=(note,))


def _by_content(contents: Iterable[str]) -> list[str]:
    """In an order that does not depend on names or on what else is there."""
    return sorted(contents, key=lambda content: stable_hash("hold out", content))


def without_augmentation(data: DataConfig) -> DataConfig:
    """The data section for measuring: every picture whole and as it is, with its caption whole and
    in order.
    """
    captions = replace(data.captions, shuffle=False, tag_dropout=0.0, dropout=0.0)
    images = replace(data.images, crop="center", crops=1, flip=False)
    return replace(data, captions=captions, images=images)


def without_repeats(record: Record) -> Record:
    """An image once, with the first of its captions."""
    return replace(record, role="train", repeats=1, shuffle=False, captions=record.captions[:1])


def _hold_out(records: tuple[Record, ...], recipe: Recipe) -> Split:
    """Split off images by a hash of their content: the same images whatever else is in the folder,
    and all copies.
    """
    training = Counter(record.content for record in records if record.role == "train")
    contents = _by_content(training)
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
    held_out = tuple(once[c] for c in contents[:count])
    return Split(tuple(r for r in records if r.content not in chosen), held_out, held_out, notes)


def _given(records: tuple[Record, ...], recipe: Recipe, cache: Path) -> Split:
    """The images of `validation.path`, worded as training words its own, without those that are
    trained on.
    """
    source = SourceConfig(path=recipe.validation.path)
    found = cached_scan(replace(recipe.data, sources=(source,)), cache).records
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
    held_out = tuple(_worded(record, wording) for record in validation)
    return Split(records, held_out, held_out, tuple(notes))


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


def check_one_image(needs: Needs, records: Sequence[Record]) -> None:
    """Raises RecipeError where a method that edits a single image finds more."""
    if not needs.edits_towards:
        return
    if prior := [record.name for record in records if record.role != "train"]:
        raise RecipeError(
            f"data.sources: {prior[0]} is a class image, and imagic edits one picture without any. "
            "Leave --prior out."
        )
    if len(records) > 1:
        raise RecipeError(
            f"data.sources: {len(records)} images, and imagic edits one: {records[0].name} and "
            f"{records[1].name}, for example. Name the file itself: --images photo.png."
        )

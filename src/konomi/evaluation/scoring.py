"""One candidate's scores: which scorers can say something, what they say, what that depends on."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from konomi import __version__
from konomi.evaluation.drawing import PictureFolder
from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.encoders.remembered import content_of
from konomi.evaluation.job import Evaluation
from konomi.evaluation.pictures import Material, Pictures
from konomi.evaluation.scorers import SCORERS
from konomi.evaluation.scorers.copies import Copies, matches
from konomi.evaluation.scorers.scorer import Scorer
from konomi.evaluation.store import Found
from konomi.evaluation.summary import Copy
from konomi.storage.atomic import write_file

TRAINING = "training"
"""Folder of the training pictures that were copied."""
_SHOWN = 512
"""Pixels of their longest side."""
TRAINED_ON = "compared with pictures that were trained on, which flatters"
_ABSENT = {
    "references": "there is no picture to compare with. Give some with --images DIR",
    "training": "it is not known what was trained on",
    "captions": "the pictures to compare with have no captions",
}
"""A scorer's need -> why it is not met."""


def usable_scorers(evaluation: Evaluation) -> tuple[list[Scorer], list[str]]:
    """The scorers whose needs are met, and a line on those that are left out."""
    there = {
        "references": bool(evaluation.references.images),
        "training": bool(evaluation.training),
        "captions": bool(evaluation.references.captions),
    }
    all_of_them = (*SCORERS, *evaluation.preference)
    ready = [scorer for scorer in all_of_them if getattr(scorer, "available", lambda: True)()]
    usable: list[Scorer] = []
    without: dict[str, list[str]] = {}
    for scorer in ready:
        lacking = next((need for need in sorted(scorer.needs) if not there.get(need, True)), None)
        if lacking is None:
            usable.append(scorer)
        else:
            without.setdefault(_ABSENT[lacking], []).append(scorer.name)
    # What needs a package of its own is missed only by whoever asked for it.
    notes = [_absent(scorer) for scorer in evaluation.preference if scorer not in ready]
    notes += [f"not measured: {', '.join(names)}: {why}." for why, names in without.items()]
    kinds = {prompt.kind for prompt in evaluation.plan.prompts}
    idle = [scorer for scorer in usable if not kinds & scorer.prompts]
    for kind in ("subject", "class"):
        names = [scorer.name for scorer in idle if kind in scorer.prompts]
        if names:
            notes.append(f"not measured: {', '.join(names)}: no prompt shows the {kind}.")
    return [scorer for scorer in usable if scorer not in idle], notes


def absent_packages() -> list[str]:
    """A line on each scorer that is always there but for its package or weights, for the record:
    others measure the same.
    """
    return [
        _absent(scorer) for scorer in SCORERS if not getattr(scorer, "available", lambda: True)()
    ]


def _absent(scorer: Scorer) -> str:
    return f"not measured: {scorer.name}: its package or weights are not on this machine."


def measured(
    evaluation: Evaluation,
    encoders: Encoders,
    scorers: Sequence[Scorer],
    *,
    stored: PictureFolder,
    base: Pictures,
    folder: Path,
) -> Found:
    """The scores of one candidate's pictures beside the base's; what is not a number is absent.

    `folder`: of the whole evaluation; training pictures that were copied are kept there, to be
    shown. Raises RunError for the disk.
    """
    material = Material(
        candidate=pictures_of(evaluation, stored),
        base=base,
        references=evaluation.references,
        training=evaluation.training,
        encoders=encoders,
    )
    scores = {}
    for scorer in scorers:
        values = scorer.score(material)
        if finite := {place: value for place, value in values.items() if math.isfinite(value)}:
            scores[scorer.name] = finite
    looked = any(scorer.name == Copies.name for scorer in scorers)
    return Found(scores, tuple(_copies(evaluation, material, stored, folder)) if looked else ())


def pictures_of(evaluation: Evaluation, stored: PictureFolder) -> Pictures:
    """A candidate's pictures, read back. Raises RunError where one is not there."""
    return Pictures(evaluation.plan.prompts, evaluation.plan.seeds, stored.images())


def _copies(
    evaluation: Evaluation, material: Material, stored: PictureFolder, folder: Path
) -> Iterator[Copy]:
    for place, match in matches(material).items():
        if not match.is_copy:
            continue
        name = Path(evaluation.training_names[match.training]).stem
        kept = folder / TRAINING / f"{match.training:04d}-{name[:80]}.png"
        if not kept.exists():
            small = evaluation.training[match.training].copy()
            small.thumbnail((_SHOWN, _SHOWN))
            with write_file(kept) as temporary:
                small.save(temporary, "PNG")
        yield Copy(
            stored.path(place).relative_to(folder).as_posix(),
            kept.relative_to(folder).as_posix(),
            match.similarity,
            match.usual,
        )


def scores_key(
    evaluation: Evaluation,
    encoders: Encoders,
    scorers: Sequence[Scorer],
    *,
    stored: PictureFolder,
    base: PictureFolder,
) -> str:
    """Names everything that a candidate's scores depend on."""
    facts = [
        __version__,
        stored.keys(),
        base.keys(),
        [prompt.plain for prompt in evaluation.plan.prompts],
        [prompt.kind for prompt in evaluation.plan.prompts],
        [content_of(image).hex() for image in evaluation.references.images],
        evaluation.references.captions,
        [content_of(image).hex() for image in evaluation.training],
        [encoders.image.name, encoders.text.name],
        "" if encoders.copies is None else encoders.copies.name,
        [scorer.name for scorer in scorers],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

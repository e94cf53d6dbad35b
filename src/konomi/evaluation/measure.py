"""Draw what is compared, score it, and write down what was found.

First every picture, with the base in memory once and one file after another put on it; then every
score. What is there already is neither drawn nor measured again, so an evaluation that was
interrupted, or that has a further file, goes on where it was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch

from konomi.errors import FileFormatError, KonomiError, ModelError, RecipeError
from konomi.evaluation.candidates import (
    BASE,
    CandidateFile,
    Opened,
    bytes_of,
    content,
    drawn_with,
    is_whole_model,
    one_line,
    open_saved,
)
from konomi.evaluation.drawing import PictureFolder, model_key
from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.fixed_noise import (
    LOSS_NOTES,
    Captioned,
    FixedNoise,
    LossesOf,
    fixed_noise,
    loss_notes,
    loss_scores,
)
from konomi.evaluation.job import Evaluation
from konomi.evaluation.scorers.scorer import Scorer
from konomi.evaluation.scoring import (
    TRAINED_ON,
    absent_packages,
    measured,
    pictures_of,
    scores_key,
    usable_scorers,
)
from konomi.evaluation.statistics import estimate
from konomi.evaluation.store import (
    PICTURES,
    Found,
    keep_found,
    keep_losses,
    kept_found,
    kept_losses,
    write_scores,
    write_summary,
)
from konomi.evaluation.suggestion import suggest
from konomi.evaluation.summary import Candidate, ScorerNote, Summary
from konomi.generation.request import Origin
from konomi.models.base import BaseModel
from konomi.storage.atomic import explained
from konomi.storage.home import shown
from konomi.training.events import Event, Prepared, Warned


@dataclass(slots=True)
class _Work:
    """What has been found out so far."""

    evaluation: Evaluation
    base: BaseModel
    encoders: Encoders
    folder: Path
    scorers: Sequence[Scorer]
    unscored: list[str]
    """A line on each scorer that is left out."""
    folders: dict[str, PictureFolder] = field(default_factory=dict)
    """By candidate; those that could be drawn."""
    failures: dict[str, str] = field(default_factory=dict)
    """By candidate: why it could not be drawn or measured."""
    found: dict[str, Found] = field(default_factory=dict)
    noise: FixedNoise | None = None
    """Measures losses, once the base has drawn."""
    losses: dict[str, LossesOf] = field(default_factory=dict)
    """By candidate."""


def measure(
    evaluation: Evaluation, base: BaseModel, encoders: Encoders, folder: Path, *, memory: Path
) -> Iterator[Event]:
    """Draw, score and write: `pictures/`, `scores.jsonl`, `summary.json` in `folder`.

    `memory`: where the base's pictures are kept for other evaluations. A candidate that cannot be
    drawn or measured is a row with its reason.

    Raises RunError for the disk, ModelError where the base itself cannot be drawn; what was
    finished is kept.
    """
    scorers, unscored = usable_scorers(evaluation)
    unscored += _loss_notes(evaluation)
    work = _Work(evaluation, base, encoders, folder, scorers, unscored)
    yield from _draw(work, memory)
    yield from _score(work)
    summary = _summary(work)
    scores = {id: found.scores for id, found in work.found.items() if id != BASE}
    chosen = suggest(summary, evaluation.limits, scores=scores)
    summary = replace(summary, suggestion=chosen)
    write_scores(summary, work.found, folder)
    write_summary(summary, folder)


def _draw(work: _Work, memory: Path) -> Iterator[Event]:
    evaluation, base = work.evaluation, work.base
    each = evaluation.plan.total
    total = each * (1 + len(evaluation.candidates))
    untouched = model_key(base)
    stored = PictureFolder(evaluation.plan, _place(work, BASE), untouched, memory=memory)
    for there in stored.draw(base, Origin(model=base.name, adapters=evaluation.attached)):
        yield Prepared("pictures", there, total)
    work.folders[BASE] = stored
    work.noise = fixed_noise(evaluation.losses, base, _of_class(work), evaluation.plan.size)
    if _without_losses(work, BASE):
        _measure_losses(work, BASE, base)
    done = shown = each
    for _, group in groupby(evaluation.candidates, key=lambda one: one.file):
        same_file = list(group)
        for index, there in _draw_file(work, same_file, untouched):
            shown = done + index * each + there
            yield Prepared("pictures", shown, total)
        done += len(same_file) * each
        if shown < done:
            # What was there already, or could not be drawn.
            yield Prepared("pictures", done, total)


def _draw_file(
    work: _Work, group: Sequence[CandidateFile], untouched: str
) -> Iterator[tuple[int, int]]:
    """The pictures of one file at its weights: which of them, and how many of its pictures are
    there.
    """
    file, plan, base = group[0].file, work.evaluation.plan, work.base
    opened: Opened | None = None
    for index, candidate in enumerate(group):
        weight = candidate.weight
        try:
            if file.failure:
                raise ModelError(file.failure)
            with explained(file.path):
                key = f"{untouched} {content(file.path)} {weight!r}"
            stored = PictureFolder(plan, _place(work, candidate.id), key)
            work.folders[candidate.id] = stored
            if stored.missing() or _without_losses(work, candidate.id):
                opened = opened or open_saved(file.path)
                used = (*work.evaluation.attached, *opened.used(weight))
                origin = Origin(model=base.name, adapters=used)
                with drawn_with(opened, base, weight) as model:
                    for there in stored.draw(model, origin):
                        yield index, there
                    if candidate.id not in work.losses:
                        _measure_losses(work, candidate.id, model)
        except (ModelError, FileFormatError) as error:
            # The others go on; what the disk refuses would be refused to them as well.
            work.folders.pop(candidate.id, None)
            work.failures[candidate.id] = one_line(error)


def _without_losses(work: _Work, id: str) -> bool:
    """Whether a candidate's losses are still to be measured, after taking over what was kept."""
    if work.noise is None:
        return False
    stored = work.folders[id]
    kept = kept_losses(work.noise.key(stored.model_key), stored.folder)
    if kept is not None:
        work.losses[id] = kept
    return kept is None


def _measure_losses(work: _Work, id: str, model: BaseModel) -> None:
    if work.noise is None:
        return
    stored = work.folders[id]
    try:
        work.losses[id] = work.noise.losses(model)
    except (ModelError, RecipeError, torch.OutOfMemoryError) as error:
        # Its pictures say the rest.
        why = one_line(error) if isinstance(error, KonomiError) else f"{model.device} is full."
        work.unscored.append(f"the losses of {id} could not be measured: {why}")
        return
    keep_losses(work.losses[id], work.noise.key(stored.model_key), stored.folder)


def _of_class(work: _Work) -> Captioned:
    """The base's own pictures of the class, with what they were drawn from."""
    prompts = work.evaluation.plan.prompts
    shown = {row for row, prompt in enumerate(prompts) if prompt.kind == "class"}
    if not shown:
        return Captioned()
    pictures = work.folders[BASE].images()
    places = [place for place in sorted(pictures) if place[0] in shown]
    texts = tuple(prompts[row].text for row, _ in places)
    return Captioned(tuple(pictures[place] for place in places), texts)


def _loss_notes(evaluation: Evaluation) -> list[str]:
    return loss_notes(
        evaluation.losses,
        shows_class=any(prompt.kind == "class" for prompt in evaluation.plan.prompts),
        knows_training=bool(evaluation.training),
    )


def _score(work: _Work) -> Iterator[Event]:
    evaluation, encoders, scorers = work.evaluation, work.encoders, work.scorers
    yield from map(Warned, work.unscored)
    base = work.folders[BASE]
    base_pictures = pictures_of(evaluation, base)
    total = len(work.folders)
    for done, (id, stored) in enumerate(work.folders.items()):
        yield Prepared("scores", done, total)
        key = scores_key(evaluation, encoders, scorers, stored=stored, base=base)
        found = kept_found(key, stored.folder)
        if found is None:
            found = measured(
                evaluation,
                encoders,
                scorers,
                stored=stored,
                base=base_pictures,
                folder=work.folder,
            )
            keep_found(found, key, stored.folder)
        work.found[id] = found
    yield Prepared("scores", total, total)


def _summary(work: _Work) -> Summary:
    evaluation = work.evaluation
    references = evaluation.references
    trained_on = "" if references.held_out else TRAINED_ON
    candidates = tuple(_candidates(work))
    known = {name for one in candidates for name in one.scores}
    return Summary(
        base=evaluation.base,
        prompts=evaluation.plan.prompts,
        seeds=evaluation.plan.seeds,
        references=len(references.images),
        references_held_out=references.held_out,
        encoders={"image": work.encoders.image.name, "text": work.encoders.text.name},
        scorers=(
            *(
                ScorerNote(
                    scorer.name,
                    scorer.title,
                    scorer.source,
                    scorer.unit,
                    scorer.higher_is_better,
                    trained_on if "references" in scorer.needs else "",
                )
                for scorer in work.scorers
                if scorer.name in known
            ),
            *(note for note in LOSS_NOTES if note.name in known),
        ),
        candidates=candidates,
        suggestion=None,
        notes=(*evaluation.notes, *work.unscored, *absent_packages()),
        adapters=evaluation.adapters,
    )


def _candidates(work: _Work) -> Iterator[Candidate]:
    base = work.found[BASE]
    bounds = {scorer.name: scorer.bounds for scorer in work.scorers}
    yield Candidate(
        id=BASE,
        label=work.evaluation.base,
        method=BASE,
        file="",
        run="",
        step=0,
        weight=1.0,
        bytes=0,
        scores={
            name: estimate(values, None, bounds=bounds[name])
            for name, values in base.scores.items()
        }
        | loss_scores(work.losses.get(BASE, {}), None),
        pictures=_pictures(work, BASE),
    )
    for candidate in work.evaluation.candidates:
        file, found = candidate.file, work.found.get(candidate.id, Found({}))
        yield Candidate(
            id=candidate.id,
            label=candidate.label,
            method=file.method,
            file=shown(file.path),
            run="" if file.run is None else shown(file.run),
            step=file.step,
            weight=candidate.weight,
            bytes=bytes_of(file.path) if file.path.exists() else 0,
            scores={
                name: estimate(values, base.scores.get(name), bounds=bounds[name])
                for name, values in found.scores.items()
            }
            | loss_scores(work.losses.get(candidate.id, {}), work.losses.get(BASE)),
            pictures=_pictures(work, candidate.id) if candidate.id in work.folders else {},
            copies=found.copies,
            failure=work.failures.get(candidate.id, ""),
            whole_model=candidate.id in work.folders and is_whole_model(file.path),
        )


def _pictures(work: _Work, id: str) -> dict[str, str]:
    stored = work.folders[id]
    return {
        f"{row}-{column}": stored.path((row, column)).relative_to(work.folder).as_posix()
        for row, column in sorted(work.evaluation.plan.places())
    }


def _place(work: _Work, id: str) -> Path:
    return work.folder / PICTURES / id

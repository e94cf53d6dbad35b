"""`check`: everything that can be known about a run before it starts."""

from dataclasses import dataclass
from pathlib import Path

from konomi.config.recipe import Recipe
from konomi.data.images import unreadable
from konomi.tasks.preparing import Job, prepare
from konomi.tasks.prior import propose_nouns
from konomi.tasks.timing import seconds_per_step


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One image as training will see it."""

    name: str
    role: str
    caption: str
    size: str
    bucket: str
    crop: str
    """left, top, right, bottom in the image's own pixels."""
    repeats: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The pre-flight."""

    rows: tuple[CheckRow, ...]
    sentence: str
    steps: int
    excluded: tuple[tuple[str, str], ...]
    """(name, reason)."""
    problems: tuple[str, ...]
    trainable: str = ""
    """What will be learned, in words."""
    nouns: tuple[tuple[str, float], ...] = ()
    """What CLIP takes the images for, where no class noun is given: (noun, share)."""
    seconds: float | None = None
    """Measured: steps times the time of one, without encoding and previews. None: not measured."""


def check(recipe: Recipe, *, read_all: bool = True, measure: bool = False) -> CheckReport:
    """Look at images, captions, buckets and steps. `read_all` decodes every image, to find damaged ones now.
    `measure` loads the base and does three steps on made-up examples, to tell how long the run will take.

    Raises KonomiError for what would stop the run.
    """
    job = prepare(recipe)
    bad = {excluded.name: excluded.reason for excluded in unreadable(job.assignment.records)} if read_all else {}
    rows = tuple(
        CheckRow(
            name=image.name,
            role=image.role,
            caption=image.caption,
            size=f"{image.size[0]}x{image.size[1]}",
            bucket=f"{image.bucket[0]}x{image.bucket[1]}",
            crop=",".join(map(str, image.crop)),
            repeats=image.repeats,
            problem=bad.get(image.name, ""),
        )
        for image in job.summary.images
    )
    problems = [*job.summary.problems, *job.notes]
    if bad:
        problems.append(f"{len(bad)} images cannot be read; training would stop at them. Remove or replace them.")
    if job.recipe.run.output and Path(job.recipe.run.output, "checkpoints").exists():
        problems.append(f"{job.recipe.run.output} holds a run already: resume it, or name another output.")
    seconds = seconds_per_step(job) * job.summary.steps if measure else None
    return CheckReport(
        rows=rows,
        seconds=seconds,
        sentence=job.summary.sentence,
        steps=job.summary.steps,
        excluded=tuple((excluded.name, excluded.reason) for excluded in job.summary.excluded),
        problems=tuple(problems),
        nouns=_proposed_nouns(job),
        trainable=f"{job.recipe.method.kind} on {job.base.name} ({job.base.family}), {job.recipe.data.resolution} px",
    )


def _proposed_nouns(job: Job) -> tuple[tuple[str, float], ...]:
    """Only where images would be trained without a word that says what they show."""
    training = [record for record in job.manifest.records if record.role == "train"]
    if all(record.class_noun or record.captions for record in training):
        return ()
    return propose_nouns(job.recipe, training)

"""`check`: everything that can be known about a run before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from konomi.config.overrides import method_title
from konomi.config.recipe import Recipe
from konomi.data.images import unreadable
from konomi.data.manifest import Finding, first_names
from konomi.data.scan_cache import VerifiedImages
from konomi.data.summary import ImageSummary
from konomi.errors import RunError
from konomi.tasks.preparing import Job, cache_folder, prepare
from konomi.tasks.prior import propose_nouns
from konomi.tasks.run_folder import check_run_folder
from konomi.tasks.saving import check_output_paths
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


class CheckRows(Sequence[CheckRow]):
    """All images, each row made when it is looked at: a screen shows forty of a hundred
    thousand.
    """

    def __init__(self, images: Sequence[ImageSummary], problems: Mapping[str, str]) -> None:
        self._images = images
        self.problems = problems
        """Name -> what is wrong."""

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> CheckRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CheckRow]: ...
    def __getitem__(self, index: int | slice) -> CheckRow | Sequence[CheckRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        image = self._images[index]
        return CheckRow(
            name=image.name,
            role=image.role,
            caption=image.caption,
            size=f"{image.size[0]}x{image.size[1]}",
            bucket=f"{image.bucket[0]}x{image.bucket[1]}",
            crop=",".join(map(str, image.crop)),
            repeats=image.repeats,
            problem=self.problems.get(image.name, ""),
        )


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The pre-flight."""

    rows: Sequence[CheckRow]
    sentence: str
    steps: int
    excluded: tuple[tuple[str, str], ...]
    """(name, reason)."""
    problems: tuple[str, ...]
    """One line each: what training would stop at, what the findings say, what the settings do not
    do."""
    stops: tuple[str, ...] = ()
    """Those of the problems that would end `train` before its first step."""
    findings: tuple[Finding, ...] = ()
    """What was noticed about the data, with the names of all files."""
    trainable: str = ""
    """What will be learned, in words."""
    nouns: tuple[tuple[str, float], ...] = ()
    """What CLIP takes the images for, where no class noun is given: (noun, share)."""
    seconds: float | None = None
    """Measured: steps times the time of one, without encoding and previews. None: not measured."""


def check(
    recipe: Recipe, *, read_all: bool = True, measure: bool = False, assumed_base: bool = False
) -> CheckReport:
    """Look at images, captions, buckets and steps.

    recipe: the run to look at.
    read_all: decode every image, to find damaged ones now.
    measure: load the base and do three steps on made-up examples, to tell how long the run will
        take.
    assumed_base: nobody named the recipe's base, and the report says so.

    Raises KonomiError for what would stop the run.
    """
    job = prepare(recipe)
    bad: dict[str, str] = {}
    if read_all:
        verified = VerifiedImages(cache_folder(job.recipe))
        found = unreadable(
            job.assignment.records, workers=job.recipe.data.workers, verified=verified
        )
        bad = {excluded.name: excluded.reason for excluded in found}
    rows = CheckRows(job.summary.images, bad)
    stops = _what_stops(job, bad)
    findings = (*(_assumed(job) if assumed_base else ()), *job.findings)
    seconds = seconds_per_step(job) * job.summary.steps if measure and not stops else None
    return CheckReport(
        rows=rows,
        seconds=seconds,
        sentence=job.summary.sentence,
        steps=job.summary.steps,
        excluded=tuple((excluded.name, excluded.reason) for excluded in job.summary.excluded),
        problems=(*stops, *(finding.message for finding in findings), *job.notes),
        stops=stops,
        findings=findings,
        nouns=_proposed_nouns(job),
        trainable=f"{method_title(job.recipe.method)} on {job.base.name} ({job.base.family}), "
        f"{job.recipe.data.resolution} px",
    )


def _assumed(job: Job) -> tuple[Finding, ...]:
    message = (
        f"no base was named: this is what training on {job.base.name!r} "
        f"({job.recipe.data.resolution} px) would do. Name yours with --base; sizes, token counts "
        "and defaults depend on it."
    )
    return (Finding(message),)


def _what_stops(job: Job, bad: Mapping[str, str]) -> tuple[str, ...]:
    """What `train` would raise before its first step, and `prepare` has not."""
    found = []
    if bad:
        listed = list(bad)
        found.append(
            f"{len(bad)} images cannot be read; training would stop at them. Remove or replace "
            f"them: {first_names(listed)}"
        )
    if not job.summary.steps_per_epoch:
        found.append("There is no image to train on.")
    if job.recipe.run.output:
        folder = Path(job.recipe.run.output)
        try:
            check_run_folder(folder)
            check_output_paths(job, folder, replace=False)
        except RunError as error:
            found.append(str(error))
    return tuple(found)


def _proposed_nouns(job: Job) -> tuple[tuple[str, float], ...]:
    """Only where images would be trained without a word that says what they show."""
    training = [record for record in job.manifest.records if record.role == "train"]
    if all(record.class_noun or record.captions for record in training):
        return ()
    return propose_nouns(job.recipe, training)

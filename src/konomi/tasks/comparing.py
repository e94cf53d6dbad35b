"""`compare`: candidates trained at an equal budget, measured alike, and the one to keep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from konomi.config.recipe import Recipe
from konomi.errors import RecipeError
from konomi.evaluation.plan import Plan
from konomi.storage.atomic import sweep_temporaries
from konomi.storage.lock import RunLock
from konomi.tasks.candidate_processes import FromRun, Trained, train_in_processes
from konomi.tasks.candidates import Asked, Wanted, wanted_runs
from konomi.tasks.planning import planned
from konomi.training.events import Event, Finished
from konomi.training.stop import Stop, stop_on_signals


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be done, before it is done."""

    plan: Plan
    folder: str
    jobs: int


ComparisonEvent = Event | Planned | FromRun
"""What a comparison tells: its plan, what each run tells, and of its own measuring what `evaluate`
tells."""


def compare(
    candidates: Sequence[str | Path | Recipe],
    *,
    images: Sequence[str | Path] = (),
    base: str = "",
    trigger: str = "",
    class_noun: str = "",
    prior_images: str | Path | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    budget: str = "",
    sweep: Sequence[str] = (),
    saves: int | None = None,
    jobs: int = 1,
    output: str | Path | None = None,
    plan_only: bool = False,
    stop: Stop | None = None,
) -> Iterator[ComparisonEvent]:
    """Train candidates at an equal budget, measure their files alike, and say which to keep.

    candidates: methods (`lora`), recipe files or recipes.
    images: folders of pictures to learn, the same for all; by default those of the recipes.
    base: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    trigger: the word that will mean the subject.
    class_noun: what the subject is in plain words, `dog`.
    prior_images: a folder of class images, in place of those the base would draw.
    seed: of everything that is drawn by chance, in every run.
    overrides: settings for every candidate, each like `run.batch_size=4`.
    budget: `steps=600`, `images=2400` or `minutes=10` for each; by default the length that the
        first candidate would take by itself.
    sweep: `method.rank=4,16` makes a run of each value, times those of other sweeps.
    saves: files of each run that are measured; by default 4, of whole models 2.
    jobs: runs at a time, each a process of its own; they share the cores.
    output: the folder; by default runs/compare-NAME. Asked again with the same, the comparison goes
        on where it was: finished runs are not repeated.
    plan_only: stop after the plan.
    stop: asks the runs at hand to save and end.

    The first event of its own is `Planned`, the last `Finished` with the page's path. A candidate
    that fails is a row of the result with its reason. Raises KonomiError for what is wrong with
    all of them.
    """
    if jobs < 1:
        raise RecipeError(f"--jobs is {jobs}; at least 1 run at a time.")
    if saves is not None and saves < 1:
        raise RecipeError(f"--saves is {saves}; at least 1 file of each run is measured.")
    asked = Asked(
        images=tuple(map(Path, images)),
        base=base,
        trigger=trigger,
        class_noun=class_noun,
        prior_images=None if prior_images is None else Path(prior_images),
        seed=seed,
        overrides=tuple(overrides),
        sweep=tuple(sweep),
    )
    wanted = wanted_runs(candidates, asked)
    folder = Path(output) if output is not None else _usual_folder(wanted)
    with stop_on_signals(stop or Stop()) as heeded, RunLock(folder):
        sweep_temporaries(folder)
        plan = yield from planned(wanted, folder, budget=budget, saves=saves, jobs=jobs)
        yield Planned(plan, str(folder), jobs)
        if plan_only:
            return
        heeded.saves = True
        trained = {}
        for news in train_in_processes(
            plan.trainable, folder, jobs=jobs, threads=plan.threads, stop=heeded
        ):
            yield news
            if isinstance(news.event, Trained):
                trained[news.run] = news.event
        if heeded.requested:
            yield Finished(0, "", interrupted=True)
            return


def _usual_folder(wanted: Sequence[Wanted]) -> Path:
    source = next(s for s in wanted[0].recipe.data.sources if s.role == "train")
    return Path("runs") / f"compare-{source.trigger or Path(source.path).stem}"

"""`compare`: candidates trained at an equal budget, measured alike, and the one to keep."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from konomi.config.evaluation import EvaluationConfig
from konomi.config.recipe import Recipe
from konomi.errors import KonomiError, RecipeError, RunError
from konomi.evaluation.candidates import SavedFile
from konomi.evaluation.plan import Plan, PlannedRun
from konomi.evaluation.store import read_summary
from konomi.evaluation.suggestion import trade_off
from konomi.storage.atomic import sweep_temporaries
from konomi.storage.lock import RunLock
from konomi.tasks.candidate_processes import FromRun, Trained, train_in_processes
from konomi.tasks.candidate_ray import train_on_ray
from konomi.tasks.candidates import Asked, Wanted, wanted_runs
from konomi.tasks.evaluating import evaluate_files
from konomi.tasks.evaluation_setup import files_of_run, setup_of_runs
from konomi.tasks.planning import SearchPlan, one_line, planned, planned_trial, run_folder
from konomi.tasks.searching import Search, Tried, Values, search_waves
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
    search: int = 0,
    saves: int | None = None,
    jobs: int | None = None,
    on: str = "",
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
    search: at most so many runs of each candidate, whose settings are chosen among the sweep's by
        what the earlier ones came to; 0: every combination.
    saves: files of each run that are measured; by default 4, of whole models 2.
    jobs: runs at a time, each a process of its own; they share the cores. By default one, with `on`
        as many as fit.
    on: `ray` or `ray:ADDRESS`: where runs are placed; by default on this machine.
    output: the folder; by default runs/compare-NAME. Asked again with the same, the comparison goes
        on where it was: finished runs are not repeated.
    plan_only: stop after the plan.
    stop: asks the runs at hand to save and end.

    The first event of its own is `Planned`, the last `Finished` with the path of what was found. A
    candidate that fails is a row of the result with its reason. Raises KonomiError for what is
    wrong with all of them.
    """
    _check(jobs, saves, on, search, sweep)
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
    wanted = wanted_runs(candidates, asked, search=bool(search))
    folder = Path(output) if output is not None else _usual_folder(wanted)
    with stop_on_signals(stop or Stop()) as heeded:
        with RunLock(folder):
            sweep_temporaries(folder)
            among = SearchPlan(search, tuple(sweep)) if search else None
            plan = yield from planned(
                wanted, folder, budget=budget, saves=saves, jobs=jobs or 1, search=among
            )
        yield Planned(plan, str(folder), jobs or 1)
        if plan_only:
            return
        work = _Comparison(wanted, plan, folder, on, jobs, heeded)
        yield from work.search(search, sweep) if search else work.train(plan.trainable)
        if heeded.requested:
            yield Finished(0, "", interrupted=True)
            return
        yield from work.measure()


@dataclass(slots=True)
class _Comparison:
    """A comparison at work."""

    wanted: tuple[Wanted, ...]
    plan: Plan
    folder: Path
    on: str
    jobs: int | None
    stop: Stop
    runs: list[PlannedRun] = field(default_factory=list)
    """All that are rows of the result, in order."""
    ended: dict[str, Trained] = field(default_factory=dict)
    """By run."""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs += self.plan.runs

    def train(
        self, runs: Sequence[PlannedRun], until: Mapping[str, int] | None = None
    ) -> Iterator[FromRun]:
        """Each to its end, or to the save after which it is to stop."""
        self.stop.saves = True
        with RunLock(self.folder):
            for news in self._training(runs, until or {}):
                yield news
                if isinstance(news.event, Trained):
                    self.ended[news.run] = news.event
        self.stop.saves = False

    def _training(
        self, runs: Sequence[PlannedRun], until: Mapping[str, int]
    ) -> Generator[FromRun, None, None]:
        threads, stop = self.plan.threads, self.stop
        if not self.on:
            jobs = self.jobs or 1
            return train_in_processes(
                runs, self.folder, jobs=jobs, threads=threads, stop=stop, until=until
            )
        return train_on_ray(
            runs,
            self.folder,
            address=self.on.partition(":")[2],
            jobs=self.jobs,
            threads=threads,
            stop=stop,
            until=until,
        )

    def search(self, count: int, sweep: Sequence[str]) -> Iterator[ComparisonEvent]:
        """Up to `count` runs of each candidate, with settings that follow from the earlier ones."""
        self.runs = [run for run in self.plan.runs if run.failure]
        for wanted in self.wanted:
            first = next(run for run in self.plan.runs if run.id == wanted.id)
            if first.failure:
                continue
            search = Search(wanted, first, sweep, seed=wanted.recipe.run.seed)
            yield from search_waves(
                search,
                count,
                together=self.jobs or 1,
                planned=self._trial(first),
                train=self.train,
                measure=lambda: self._values(),
                stop=self.stop,
            )
            if self.stop.requested:
                return
            self.notes += map(_stopped_early, filter(lambda one: one.stopped, search.tried))

    def _trial(self, first: PlannedRun) -> Callable[[Wanted], PlannedRun]:
        def plan(wanted: Wanted) -> PlannedRun:
            run = planned_trial(wanted, first, self.plan, self.folder)
            self.runs.append(run)
            return run

        return plan

    def _values(self) -> Generator[ComparisonEvent, None, Values]:
        """How good every save so far is: likeness x prompt following, less 1 where a limit is
        broken."""
        for event in self.measure():
            if not isinstance(event, Finished):
                yield event
        summary = read_summary(self.folder)
        refused = summary.suggestion.refused if summary.suggestion is not None else {}
        limits = self._settings().suggestion
        values: dict[tuple[str, int], float] = {}
        for one in summary.candidates:
            if one.run and not one.failure:
                value = trade_off(one, limits) - (one.id in refused)
                key = Path(one.run).name, one.step
                values[key] = max(value, values.get(key, value))
        return values

    def measure(self) -> Iterator[Event]:
        """All files so far, beside the base. Raises RunError where there is none."""
        files = [file for run in self.runs for file in self._files(run)]
        ready = [file.run for file in files if not file.failure and file.run is not None]
        if not ready:
            raise RunError(*(f"{file.label}: {file.failure}" for file in files))
        setup = setup_of_runs(list(dict.fromkeys(ready)))
        notes = (*self.plan.notes, *self.notes, *setup.notes)
        setup = replace(setup, config=self._settings(), notes=notes)
        yield from evaluate_files(files, setup, self.folder)

    def _files(self, run: PlannedRun) -> list[SavedFile]:
        """What a run saved; of one that failed, why."""
        folder, ended = run_folder(self.folder, run.id), self.ended.get(run.id, Trained())
        failure = run.failure or ended.failure
        if not failure:
            try:
                found = files_of_run(folder)
            except KonomiError as error:
                failure = one_line(error)
            else:
                return [replace(file, label=f"{run.label}, {file.label}") for file in found]
        return [SavedFile(folder, run.label, run.method, folder, failure=failure)]

    def _settings(self) -> EvaluationConfig:
        return self.wanted[0].recipe.evaluation


def _check(jobs: int | None, saves: int | None, on: str, search: int, sweep: Sequence[str]) -> None:
    if jobs is not None and jobs < 1:
        raise RecipeError(f"--jobs is {jobs}; at least 1 run at a time.")
    if saves is not None and saves < 1:
        raise RecipeError(f"--saves is {saves}; at least 1 file of each run is measured.")
    if on and on != "ray" and not on.startswith("ray:"):
        raise RecipeError(f"--on is {on!r}; it takes ray, or ray:ADDRESS of a running cluster.")
    if search < 0 or (search and not sweep):
        raise RecipeError(
            "--search N: N runs of each candidate choose among the values of --sweep KEY=V1,V2 or "
            "--sweep KEY=LOW..HIGH. Give at least one."
        )
    if not search and any(".." in text.partition("=")[2] for text in sweep):
        raise RecipeError("--sweep: a range LOW..HIGH needs --search N, which chooses in it.")


def _stopped_early(one: Tried) -> str:
    return (
        f"{one.run.label} was stopped after step {one.stopped} of {one.run.steps}: most other runs "
        "were better there."
    )


def _usual_folder(wanted: Sequence[Wanted]) -> Path:
    source = next(s for s in wanted[0].recipe.data.sources if s.role == "train")
    return Path("runs") / f"compare-{source.trigger or Path(source.path).stem}"

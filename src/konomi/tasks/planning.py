"""The plan of a comparison: steps by the budget, and the time of a really measured step."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from konomi.config.changed_settings import changed_settings
from konomi.config.load import write_recipe
from konomi.config.overrides import method_title
from konomi.config.recipe import Recipe
from konomi.errors import ModelError, RecipeError, RunError
from konomi.evaluation.budget import Budget, read_budget
from konomi.evaluation.encoders.load import load_encoder
from konomi.evaluation.plan import Plan, PlannedRun, check_same, read_plan, write_plan
from konomi.hardware.cores import usable_cores
from konomi.storage.atomic import write_text
from konomi.tasks.candidates import Wanted
from konomi.tasks.preparing import Job, prepare
from konomi.tasks.timing import seconds_per_step
from konomi.training.events import Prepared
from konomi.training.identity import data_identity

SAVES, MODEL_SAVES = 4, 2
"""How many files of a run are measured: of an adapter, and of a whole model, which fills disks."""
CANDIDATE_ERRORS = (RecipeError, ModelError, RunError)
"""What one candidate alone may fail by. A fault of the pictures (DataError) is everybody's."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A search among the values of a sweep."""

    count: int
    """Runs of each candidate."""
    sweep: tuple[str, ...]


def planned(
    wanted: Sequence[Wanted],
    folder: Path,
    *,
    budget: str,
    saves: int | None,
    jobs: int,
    search: SearchPlan | None = None,
) -> Generator[Prepared, None, Plan]:
    """The plan that lies in the folder, or a new one, written there with its recipes.

    Candidates that could not be trained are looked at again. Raises KonomiError for what is wrong
    with all of them, and RunError for a folder with another comparison.
    """
    jobs_of: dict[str, Job | str] = {run.id: _prepared(run.recipe) for run in wanted}
    first = next((job for job in jobs_of.values() if isinstance(job, Job)), None)
    if first is None:
        raise RunError(*(f"{run.id}: {jobs_of[run.id]}" for run in wanted))
    spent = read_budget(budget) if budget else _of_first(first)
    _check_measurable(wanted, first)
    asked = _asked(wanted, first, spent, saves, search)
    before = read_plan(folder)
    if before is not None:
        check_same(before, asked, folder)
    known = {run.id: run for run in before.runs if not run.failure} if before is not None else {}
    threads = max(1, usable_cores() // jobs)
    if before is not None and (folder / "runs").exists():
        # What has been trained so far was rounded as so many threads round.
        threads = before.threads
    runs = []
    for number, run in enumerate(wanted):
        if run.id not in known:
            yield Prepared("a step of each candidate", number, len(wanted))
            of_first = first.recipe.run.batch_size
            known[run.id] = _planned_run(run, jobs_of[run.id], spent, of_first, saves, threads)
        runs.append(known[run.id])
    plan = Plan(
        budget=str(spent),
        base=first.recipe.base,
        runs=tuple(runs),
        threads=threads,
        asked=asked,
        notes=_notes(runs, spent, first, named=bool(budget)),
    )
    if plan != before:
        yield Prepared("a step of each candidate", len(wanted), len(wanted))
        for run in wanted:
            _write_recipe(run, known[run.id], folder)
        write_plan(plan, folder)
    if not plan.trainable:
        raise RunError(*(f"{run.id}: {run.failure}" for run in plan.runs))
    return plan


def recipe_path(folder: Path, run: str) -> Path:
    """Where the recipe of a candidate lies: `konomi train` takes it as well."""
    return folder / "recipes" / f"{run}.toml"


def run_folder(folder: Path, run: str) -> Path:
    """Where a candidate is trained."""
    return folder / "runs" / run


def planned_trial(wanted: Wanted, first: PlannedRun, plan: Plan, folder: Path) -> PlannedRun:
    """A run of a search: as long as the candidate without the sweep, its recipe written."""
    batch = wanted.recipe.run.batch_size
    steps = max(1, math.ceil(first.images / batch))
    shorter = steps / first.steps
    run = replace(
        first,
        id=wanted.id,
        label=wanted.label,
        changes=wanted.changes,
        steps=steps,
        batch_size=batch,
        save_every=max(1, math.ceil(first.save_every * shorter)) if first.save_every else 0,
    )
    _write_recipe(wanted, run, folder)
    return run


def _check_measurable(wanted: Sequence[Wanted], first: Job) -> None:
    """Raises KonomiError for what would come out only after all training."""
    config = wanted[0].recipe.evaluation
    named = any(r.trigger or r.class_noun or r.captions for r in first.manifest.records)
    if not named and not config.prompts:
        raise RecipeError(
            "no trigger is known: say with --trigger WORD (and --class NOUN) what calls the "
            "subject, or what to draw with evaluation.prompts."
        )
    for encoder in {config.encoders.image, config.encoders.text} - {"auto", "tiny"}:
        load_encoder(encoder)


def _prepared(recipe: Recipe) -> Job | str:
    """Ready to be measured; or in one line why this candidate cannot be trained."""
    try:
        return prepare(recipe)
    except CANDIDATE_ERRORS as error:
        return one_line(error)


def one_line(error: Exception) -> str:
    """Several lines of an error as one."""
    return " ".join(str(error).split("\n"))


def _of_first(first: Job) -> Budget:
    return Budget("steps", first.total_steps)


def _planned_run(
    run: Wanted, job: Job | str, budget: Budget, of_first: int, saves: int | None, threads: int
) -> PlannedRun:
    method = method_title(run.recipe.method)
    bare = PlannedRun(id=run.id, label=run.label, method=method, changes=run.changes)
    if isinstance(job, str):
        return replace(bare, failure=job)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = seconds_per_step(job)
    except CANDIDATE_ERRORS as error:
        return replace(bare, failure=one_line(error))
    finally:
        torch.set_num_threads(usual)
        job.base.unload(*job.base.loaded_parts())
    batch = job.recipe.run.batch_size
    steps = budget.steps(batch, of_first=of_first, seconds_per_step=seconds)
    own = run.recipe.run
    count = saves or (MODEL_SAVES if job.needs.makes == "model" else SAVES)
    every = own.save_every or (0 if own.save_every_epochs else math.ceil(steps / count))
    # The last file is written in any case.
    every = every if every < steps else 0
    return replace(bare, steps=steps, batch_size=batch, save_every=every, seconds_per_step=seconds)


def _write_recipe(run: Wanted, planned: PlannedRun, folder: Path) -> None:
    """With the length of the budget. Previews are left to the measuring, unless they were asked
    for."""
    own = run.recipe.run
    changed = replace(
        own,
        output=str(Path("..", "runs", run.id)),
        steps=planned.steps,
        epochs=0,
        save_every=planned.save_every,
        preview_every=0 if own.preview_every == "auto" else own.preview_every,
    )
    write_text(recipe_path(folder, run.id), write_recipe(replace(run.recipe, run=changed)))


def _asked(
    wanted: Sequence[Wanted],
    first: Job,
    budget: Budget,
    saves: int | None,
    search: SearchPlan | None,
) -> dict[str, Any]:
    """By name whatever makes it this comparison. How files are measured may change: nothing is
    trained again for that."""
    settings = {
        f"{path} of {run.id}": value
        for run in wanted
        for path, value in changed_settings(run.recipe)
        if not path.startswith("evaluation.")
    }
    if search is not None:
        settings |= {"--search": search.count, "--sweep": list(search.sweep)}
    pictures = data_identity(first.assignment.records, first.held_out.records)
    return {
        "the candidates": [run.id for run in wanted],
        "--budget": str(budget),
        "--saves": saves or 0,
        **settings,
        **{f"of {run.id} the method": run.recipe.method.kind for run in wanted},
        **pictures,
    }


def _notes(
    runs: Sequence[PlannedRun], budget: Budget, first: Job, *, named: bool
) -> tuple[str, ...]:
    notes = []
    if not named:
        notes.append(
            f"no --budget: every candidate has the {first.total_steps} steps that "
            f"{method_title(first.recipe.method)} would take by itself."
        )
    sizes = sorted({run.batch_size for run in runs if not run.failure})
    if budget.unit == "steps" and len(sizes) > 1:
        shown = " and ".join(map(str, sizes))
        notes.append(
            f"the batches differ ({shown}), so equal budgets are equal pictures: those of "
            f"{budget.amount:g} steps of {method_title(first.recipe.method)}."
        )
    return tuple(notes)

"""The run folder: found or made, what it says of the run, and what lies in it."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from konomi.config.load import read_recipe, read_toml, write_recipe
from konomi.config.parse import parse_json
from konomi.config.recipe import Recipe
from konomi.config.sections import RunConfig
from konomi.data.manifest import write_manifest
from konomi.errors import FileFormatError, RecipeError, RunError
from konomi.evaluation.page import NAME as PAGE
from konomi.evaluation.page import step_of_page
from konomi.storage.atomic import explained, sweep_temporaries, write_text
from konomi.storage.lock import RunLock
from konomi.storage.regular import check_regular, read_small
from konomi.tasks.preparing import Job
from konomi.tasks.preview_schedule import draws_previews
from konomi.tasks.previewing import preview_paths
from konomi.tasks.recipe_card import card_path
from konomi.tasks.recipes import METHOD_CONFIGS
from konomi.tasks.reporting import ends_with_page
from konomi.tasks.saving import result_path
from konomi.training.checkpoint import Checkpoint, checkpoint_paths
from konomi.training.log import read_log
from konomi.training.trackers import TRACKERS

TRACKED = tuple(tracker.name for tracker in TRACKERS)
OUTPUTS = (
    "checkpoints",
    "previews",
    *TRACKED,
    "log.jsonl",
    "recipe.toml",
    "manifest.jsonl",
    "parent.json",
    PAGE,
)
AT_THE_END = ("result", "validation", "previews", "card", "report")
"""What a run leaves behind after its last step, in this order."""
RESULT_NOTE = "result.json"
"""In the last checkpoint's folder: which result file was written from it."""
_MAX_RECIPE = 4 * 2**20
_MAX_NOTE = 2**16


def new_run_folder(job: Job, *, overwrite: bool, beside: Path | None = None) -> Path:
    """The folder asked for, or the next free one below `runs/`, or named after `beside`. Raises
    RunError if it holds a run already.
    """
    asked = job.recipe.run.output
    folder = Path(asked) if asked else _next_free(beside or Path("runs") / job.recipe.run.name)
    if job.processes.is_first:
        with explained(folder):
            if not overwrite:
                check_run_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                _clear(folder)
    return folder


def check_run_folder(folder: Path) -> None:
    """Raises RunError if a new run cannot write to this folder: it holds one already, or cannot be
    made. Changes nothing.
    """
    with explained(folder):
        if checkpoint_paths(folder / "checkpoints"):
            raise RunError(
                f"{folder}: holds a run already. `konomi resume {folder}` goes on with it; another "
                "--output starts a new one; --overwrite replaces it."
            )
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        reason = "is not a folder" if not standing.is_dir() else "cannot be written to"
        raise RunError(
            f"{folder}: cannot be the run folder, because {standing} {reason}. Choose another "
            "--output."
        )


def recipe_of_run(folder: Path) -> Recipe:
    """What a run was started with. Raises RunError for a folder that is none, RecipeError for a
    recipe that is none.
    """
    file = folder / "recipe.toml"
    if not file.is_file():
        raise RunError(
            f"{folder}: is not a run folder (no recipe.toml in it). Name the folder that `train` "
            "wrote to."
        )
    try:
        size = check_regular(file, "recipe of a run")
    except FileFormatError as strange:
        raise RunError(str(strange)) from strange
    if size > _MAX_RECIPE:
        raise RunError(f"{file}: is {size} bytes long, far too much for a recipe. It is not read.")
    # A run of a version without that section trains on every image, and goes on doing so.
    older = () if "evaluation" in read_toml(file) else ("evaluation.hold_out=off",)
    return read_recipe(file, older, METHOD_CONFIGS)


def write_inputs(job: Job, folder: Path) -> None:
    """What the run works on, so that it can be resumed and understood."""
    write_text(folder / "recipe.toml", write_recipe(job.recipe))
    write_manifest(job.manifest, folder / "manifest.jsonl")


def note_result(checkpoint: Path, result: Path) -> None:
    """Remember that `result` is what the run's last state gave: an earlier one lies under the same
    name.
    """
    write_text(checkpoint / RESULT_NOTE, json.dumps({"result": result.name}))
    sweep_temporaries(checkpoint)


def _still_missing(
    job: Job, folder: Path, checkpoint: Checkpoint, *, previews: bool, validated: bool
) -> Sequence[str]:
    """What a run whose steps are all done has not left behind: "result", "validation", "previews",
    "card", "report", or nothing.

    `previews`, `validated`: whether the recipe wants those at the end.
    """
    missing = []
    result = result_path(job, folder, job.recipe.run.name)
    if not result.exists() or _noted_result(checkpoint.path) != result.name:
        missing.append("result")
    step = checkpoint.state.numbers["step"]
    if validated and not was_validated(folder, step):
        missing.append("validation")
    if previews and not all(
        path.is_file() for path in preview_paths(job, folder / "previews", step)
    ):
        missing.append("previews")
    if ends_with_page():
        # The page is written last: where it is of this step, so is the card, if there is one.
        page_due = bool(missing) or step_of_page(folder) != step
        if page_due or not card_path(job.recipe, folder).is_file():
            missing.append("card")
        if page_due:
            missing.append("report")
    return missing


def new_length(run: RunConfig, steps: int | None, epochs: int | None) -> RunConfig:
    """The run section with another total, where one is given. Raises RecipeError."""
    if steps is not None and epochs is not None:
        raise RecipeError(
            "--steps and --epochs are two ways to name a new total: give one of them."
        )
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None and value < 1:
            raise RecipeError(f"--{name} is {value}; it is a new total, at least 1.")
    if steps is None and epochs is None:
        return run
    return replace(run, steps=steps or 0, epochs=epochs or 0)


def to_do(job: Job, folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is to be made after the last step; less than everything where a run was cut off after
    it.

    Raises RunError where there is nothing left to do, or the total lies behind.
    """
    done, run = checkpoint.state.numbers["step"], job.recipe.run
    if done < job.total_steps:
        return AT_THE_END
    longer = f"`konomi resume {folder} --steps N` goes on to N steps."
    if done > job.total_steps:
        raise RunError(
            f"{folder}: {done} steps are done already, more than {job.total_steps}. {longer}"
        )
    validated = bool(run.validate_every and job.held_out.records)
    missing = _still_missing(
        job, folder, checkpoint, previews=draws_previews(job), validated=validated
    )
    if not missing:
        result = result_path(job, folder, run.name)
        raise RunError(
            f"{folder}: all {done} steps are done, and nothing is missing: {result.name} is there. "
            f"{longer}"
        )
    return tuple(missing)


def finished_result(folder: Path) -> tuple[int, Path] | None:
    """(last step, result file) of a run whose result is written; None for any other folder."""
    checkpoints = checkpoint_paths(folder / "checkpoints")
    name = _noted_result(checkpoints[-1]) if checkpoints else ""
    if not name or Path(name).name != name or not (folder / name).exists():
        return None
    return int(checkpoints[-1].name.rpartition("-")[2]), folder / name


def moved(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe for a run that lies in `folder`."""
    return replace(recipe, run=replace(recipe.run, output=str(folder)))


def _noted_result(checkpoint: Path) -> str:
    try:
        note = parse_json(read_small(checkpoint / RESULT_NOTE, _MAX_NOTE, "note of a result"))
    except (FileFormatError, ValueError):
        return ""
    name = note.get("result") if isinstance(note, dict) else None
    return name if isinstance(name, str) else ""


def was_validated(folder: Path, step: int) -> bool:
    """Whether the log has the loss on held-out images after this step."""
    return any(
        entry["step"] == step and entry.get("kind") == "validation" for entry in _log(folder)
    )


def _log(folder: Path) -> list[dict[str, object]]:
    try:
        check_regular(folder / "log.jsonl", "log of a run")
    except FileFormatError:
        return []
    return read_log(folder)


def _next_free(folder: Path) -> Path:
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote here, and nothing else. Not while it still runs."""
    with RunLock(folder):
        for name in OUTPUTS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

"""A branch: the state of one run's checkpoint, gone on with under other settings in a folder of its
own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from konomi.config.load import change_recipe
from konomi.config.recipe import Recipe
from konomi.errors import FileFormatError, RecipeError, RunError
from konomi.storage.atomic import explained, write_file
from konomi.storage.regular import read_small
from konomi.tasks.preparing import Job
from konomi.tasks.same_run import most_bytes
from konomi.training.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    read_checkpoint,
    write_checkpoint,
)
from konomi.training.identity import differences, flat
from konomi.training.log import copy_log
from konomi.training.parentage import Change, line_of, write_origins

_FIXED = {
    "base": "what the checkpoint holds was learned beside the other base",
    "vae": "what the checkpoint holds was learned from latents of the other VAE",
    "adapters": "what the checkpoint holds was learned on top of those adapters",
    "prediction": "what the checkpoint holds was learned for the other prediction",
    "method": "the method's settings decide what the checkpoint holds",
    "optimizer.kind": "the checkpoint holds the state of the other optimiser",
    "optimizer.betas": "they belong to the optimiser's state in the checkpoint",
    "run.precision": "the checkpoint holds what the other number format needs",
}
"""What a branch cannot change, with all below it, and why."""
_IN_PICTURES = ("preview.", "text.", "objective.", "data.resolution")
"""Settings by which the base itself draws other previews."""
_LARGEST_PICTURE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Branch:
    """What a branch begins with."""

    parent: Path
    """The folder of the run it leaves."""
    checkpoint: Checkpoint
    changed: tuple[Change, ...]

    @property
    def step(self) -> int:
        step: int = self.checkpoint.state.numbers["step"]
        return step

    def notes(self, identity: Mapping[str, Any]) -> Iterator[str]:
        """One line for each difference between parent and branch, whether asked for or not."""
        for change in self.changed:
            yield (
                f"{change.path}: {change.before!r} up to step {self.step}, {change.after!r} from "
                "here on."
            )
        asked = tuple(f"{change.path} was " for change in self.changed)
        found = differences(self.checkpoint.run, identity)
        others = [line for line in found if not line.startswith(asked)]
        yield from (f"changed since {self.parent} was trained: {line}." for line in others)
        if not self.changed and not others:
            yield (
                f"nothing is changed: this branch repeats {self.parent} from step {self.step} on. "
                "Settings are changed by name=value."
            )

    def begin(self, folder: Path, identity: dict[str, Any], *, keep: int) -> Checkpoint:
        """Write what makes `folder` a run that can be resumed; the checkpoint comes last. Raises
        RunError for the disk.
        """
        with explained(folder):
            write_origins(folder, line_of(self.parent, folder, self.step, self.changed))
            copy_log(self.parent, folder, self.step)
            self._copy_base_pictures(folder)
        path = write_checkpoint(folder / "checkpoints", self.checkpoint.state, identity, keep=keep)
        return replace(self.checkpoint, path=path)

    def _copy_base_pictures(self, folder: Path) -> None:
        """What the base drew before the parent's first step: the branch does not begin with it,
        and cannot draw it any more.
        """
        if any(change.path.startswith(_IN_PICTURES) for change in self.changed):
            return
        for path in sorted((self.parent / "previews").glob("step-000000-*.png")):
            with suppress(FileFormatError):
                encoded = read_small(path, _LARGEST_PICTURE, "preview")
                with write_file(folder / "previews" / path.name) as temporary:
                    temporary.write_bytes(encoded)


def changed_recipe(recipe: Recipe, changes: Sequence[str]) -> tuple[Recipe, tuple[Change, ...]]:
    """The recipe of a branch and what is other in it. Raises RecipeError with one line for each
    setting that cannot change.
    """
    after = change_recipe(recipe, changes)
    named = {change.partition("=")[0].strip() for change in changes}
    if "run.epochs" in named and "run.steps" not in named:
        # A total is named in one way; the run's own would count otherwise.
        after = replace(after, run=replace(after.run, steps=0))
    old, new = flat(recipe), flat(after)
    changed = tuple(
        Change(path, old.get(path), new.get(path))
        for path in dict.fromkeys((*old, *new))
        if old.get(path) != new.get(path) and path != "run.output"
    )
    if lines := [line for change in changed if (line := _refused(change))]:
        raise RecipeError(*lines)
    return after, changed


def _refused(change: Change) -> str:
    path = change.path
    reason = next(
        (why for name, why in _FIXED.items() if path == name or path.startswith(f"{name}.")),
        "",
    )
    if path == "optimizer.ema_decay" and not change.before:
        reason = "the checkpoint holds no average of the weights"
    if not reason:
        return ""
    return (
        f"{path}: cannot change in a branch, because {reason}. Start a new run with train; "
        "method.start can continue from a saved result file."
    )


def checkpoint_to_branch_at(job: Job, parent: Path, step: int) -> Checkpoint:
    """The parent's state after `step`. Raises RunError that lists what there is."""
    paths = checkpoint_paths(parent / "checkpoints")
    there = {int(path.name.removeprefix("step-")): path for path in paths}
    if not there:
        raise RunError(f"{parent}: holds no checkpoint, so there is nothing to branch off from.")
    if step not in there:
        raise RunError(
            f"{parent}: has no checkpoint of step {step}; there are those of "
            f"{', '.join(map(str, there))}. run.keep_checkpoints keeps more of them."
        )
    if job.total_steps <= step:
        raise RunError(
            f"{parent}: a branch at step {step} has nothing to do, because the run has "
            f"{job.total_steps} steps in all. Add run.steps=N with a larger total."
        )
    try:
        read = read_checkpoint(there[step], most_bytes=most_bytes(job))
    except FileFormatError as damage:
        raise RunError(f"{damage} Choose another checkpoint.") from damage
    # Measured anew: what it is compared with may be measured otherwise now.
    return replace(read, run={k: v for k, v in read.run.items() if k != "validation_base"})


def check_same_base(checkpoint: Checkpoint, identity: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises RunError where the base is not that of the parent any more."""
    if checkpoint.run.get("base") != identity["base"]:
        raise RunError(
            f"base: {recipe.base} is not what it was when {checkpoint.path} was written, and what "
            "was learned beside one base is nothing to another. Put the old one back."
        )

"""`train` and `resume`: the run folder, the loop, and what happens between two steps."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from konomi.config.load import read_recipe, write_recipe
from konomi.config.recipe import Recipe
from konomi.data.batch import Examples
from konomi.data.loader import BatchStream
from konomi.data.manifest import write_manifest
from konomi.errors import KonomiError, RecipeError, RunError
from konomi.methods import METHODS
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.method import Phase
from konomi.models.memory import apply_memory_options
from konomi.models.modes import evaluating
from konomi.storage.atomic import check_free_space, explained, sweep_temporaries, write_text
from konomi.storage.lock import RunLock
from konomi.tasks.class_images import draw_class_images, with_class_images
from konomi.tasks.preparing import Job, held_out_stream, open_stream, place, prepare
from konomi.tasks.previewing import draw_previews
from konomi.tasks.saving import check_way_is_free, save_result
from konomi.training.checkpoint import MARGIN, Checkpoint, checkpoint_paths, newest_good, write_checkpoint
from konomi.training.events import Checkpointed, Event, Finished, Previewed, Saved, Started, Step, Validated, Warned
from konomi.training.identity import check_same_run, run_identity
from konomi.training.log import cut_log, logged
from konomi.training.stop import Stop, stop_on_signals
from konomi.training.trackers import TRACKERS
from konomi.training.trackers.tracker import TrackedRun
from konomi.training.tracking import Tracking, chosen_trackers
from konomi.training.trainer import Trainer
from konomi.training.validation import spread_timesteps, validation_loss

METHOD_CONFIGS = tuple(method.config_type for method in METHODS)
TRACKED = tuple(tracker.name for tracker in TRACKERS)
OUTPUTS = ("checkpoints", "previews", *TRACKED, "log.jsonl", "recipe.toml", "manifest.jsonl")


def train(recipe: Recipe, *, overwrite: bool = False) -> Iterator[Event]:
    """Train; yields events until `Finished`. Closing the iterator cancels, SIGINT and SIGTERM save and end.

    Raises KonomiError for anything the user can mend, before the first step wherever that can be known.
    """
    job = prepare(recipe)
    folder = _new_run_folder(job, overwrite=overwrite)
    check_way_is_free(job, folder, replace=overwrite)
    job = replace(job, recipe=replace(job.recipe, run=replace(job.recipe.run, output=str(folder))))
    yield from _run(job, folder, resuming=False, allow_changes=False)


def resume(run: str | Path, *, steps: int | None = None, allow_changes: bool = False) -> Iterator[Event]:
    """Go on exactly where a run stopped, up to its total or to a new total `steps`."""
    run = Path(run)
    recipe_file = run / "recipe.toml"
    if not recipe_file.is_file():
        raise RunError(f"{run}: is not a run folder (no recipe.toml in it). Name the folder that `train` wrote to.")
    recipe = read_recipe(recipe_file, (), METHOD_CONFIGS)
    settings = replace(recipe.run, output=str(run))
    if steps is not None:
        if steps < 1:
            raise RecipeError(f"--steps is {steps}; it is a new total, at least 1.")
        settings = replace(settings, steps=steps, epochs=0)
    job = prepare(replace(recipe, run=settings))
    check_way_is_free(job, run, replace=True)
    yield from _run(job, run, resuming=True, allow_changes=allow_changes)


def _run(job: Job, folder: Path, *, resuming: bool, allow_changes: bool) -> Iterator[Event]:
    with ExitStack() as stack:
        stack.callback(job.processes.leave)
        stop = stack.enter_context(stop_on_signals())
        if job.processes.is_first:
            stack.enter_context(RunLock(folder))
            sweep_temporaries(folder)
            sweep_temporaries(folder / "checkpoints")
        trackers = chosen_trackers(job.recipe.run.trackers)
        warnings: list[str] = []
        if job.processes.is_first and not resuming:
            yield from (Warned(note) for note in job.notes)
        for news in draw_class_images(job):
            yield news
            if stop.requested:
                # Nothing is lost: what was drawn is kept.
                raise KeyboardInterrupt
        job = with_class_images(job)
        identity = run_identity(job.recipe, job.manifest, _base_fingerprint(job))
        checkpoint = None
        if resuming:
            checkpoint = newest_good(folder / "checkpoints", warn=warnings.append)
            warnings += check_same_run(checkpoint.run, identity, allow_changes=allow_changes)
            if checkpoint.state.numbers["step"] >= job.total_steps:
                raise RunError(
                    f"{folder}: all {job.total_steps} steps are done. `konomi resume {folder} --steps N` goes on to N."
                )
        job.processes.wait()
        events = _events(job, folder, stop, checkpoint, identity)
        if job.processes.is_first:
            with explained(folder):
                _write_inputs(job, folder)
            # A run that died before its first checkpoint has left lines as well.
            done = 0 if checkpoint is None else checkpoint.state.numbers["step"]
            cut_log(folder, done)
            yield from (Warned(warning) for warning in warnings)
            tracked = TrackedRun(folder, job.recipe, done)
            yield from logged(events, folder, [Tracking(tracker, tracked) for tracker in trackers])
        else:
            yield from events
        job.processes.wait()


def _events(
    job: Job, folder: Path, stop: Stop, checkpoint: Checkpoint | None, identity: dict[str, Any]
) -> Iterator[Event]:
    stream: BatchStream | None = None
    for news in open_stream(job):
        if isinstance(news, BatchStream):
            stream = news
        else:
            yield news
        if stop.requested:
            # Nothing is lost: what was encoded is kept.
            raise KeyboardInterrupt
    if stream is None:
        raise AssertionError("open_stream ends with a stream")
    work = Between(job, folder, identity)
    work.measure_base(checkpoint)
    phases = job.method.plan()
    try:
        yield from _loop(job, work, phases, stream, stop, checkpoint)
    finally:
        job.method.close()


def _loop(
    job: Job,
    work: "Between",
    phases: tuple[Phase, ...],
    stream: BatchStream,
    stop: Stop,
    checkpoint: Checkpoint | None,
) -> Iterator[Event]:
    apply_memory_options(job.base, job.recipe.memory)
    trainer = Trainer(
        phases,
        job.recipe,
        processes=job.processes,
        total_steps=job.total_steps,
        precision=job.precision,
    )
    if checkpoint is not None:
        trainer.restore(checkpoint.state)
    work.trainer = trainer
    work.check_space()
    work.modules = tuple(module for phase in phases for module in phase.modules)
    yield Started(
        first_step=trainer.step,
        total_steps=job.total_steps,
        steps_per_epoch=stream.steps_per_epoch,
        trainable_parameters=sum(p.numel() for p in trainer.parameters.values()),
        device=str(job.processes.device),
        precision=str(job.precision).removeprefix("torch."),
    )
    if trainer.step == 0:
        yield from work.look()
    for event in trainer.run(stream, stop=stop, rest_at=work.is_due):
        yield event
        if isinstance(event, Step):
            yield from work.after(event.step)
    yield from work.finish(interrupted=trainer.step < job.total_steps)


@dataclass(slots=True)
class Between:
    """What happens between two steps: checkpoints first, then result files, then what may fail (previews)."""

    job: Job
    folder: Path
    identity: dict[str, Any]
    trainer: Trainer = field(init=False)
    modules: tuple[nn.Module, ...] = ()
    """What the phases put into training mode, dropout among it."""
    held_out: list[Examples] = field(default_factory=list)
    base_loss: float = 0.0

    def is_due(self, step: int) -> bool:
        run = self.job.recipe.run
        every = (run.checkpoint_every, run.save_every, run.preview_every, run.validate_every)
        return any(period and step % period == 0 for period in every)

    def measure_base(self, checkpoint: Checkpoint | None) -> None:
        """The validation loss of the untouched base, before anything is attached; a resumed run remembers it."""
        if not self.job.recipe.run.validate_every or not self.job.processes.is_first:
            return
        stream = held_out_stream(self.job)
        if stream is None:
            return
        self.held_out = [passes[0].subject for passes in stream.iterate(0, stream.steps_per_epoch)]
        if checkpoint is not None and "validation_base" in checkpoint.run:
            self.base_loss = checkpoint.run["validation_base"]
        else:
            self.base_loss = self._validation_loss()
        self.identity["validation_base"] = self.base_loss

    def after(self, step: int) -> Iterator[Event]:
        """After a step's event has been passed on. The last step is `finish`'s."""
        run = self.job.recipe.run
        if not self.job.processes.is_first or step >= self.job.total_steps:
            return
        if run.checkpoint_every and step % run.checkpoint_every == 0:
            yield self._checkpoint()
        if run.save_every and step % run.save_every == 0:
            yield self._save(final=False)
        if run.validate_every and step % run.validate_every == 0:
            yield from self._validate()
        if run.preview_every and step % run.preview_every == 0:
            yield from self._preview()

    def look(self) -> Iterator[Event]:
        """Before the first step: what the base itself does."""
        run = self.job.recipe.run
        if self.job.processes.is_first:
            if run.validate_every:
                yield from self._validate()
            if run.preview_every:
                yield from self._preview()

    def finish(self, *, interrupted: bool) -> Iterator[Event]:
        """The last checkpoint, and the result file if the run is complete."""
        if not self.job.processes.is_first:
            yield Finished(self.trainer.step, "", interrupted)
            return
        yield self._checkpoint()
        path = ""
        if not interrupted:
            saved = self._save(final=True)
            path = saved.path
            yield saved
            if self.job.recipe.run.validate_every:
                yield from self._validate()
            if self.job.recipe.run.preview_every:
                yield from self._preview()
        yield Finished(self.trainer.step, path, interrupted)

    def check_space(self) -> None:
        """Raises RunError if not even the weights of a checkpoint fit on the disk: better known before step 1."""
        if self.job.processes.is_first:
            weights = sum(p.numel() * p.element_size() for p in self.trainer.parameters.values())
            check_free_space(self.folder, weights + MARGIN)

    def _checkpoint(self) -> Checkpointed:
        if not (self.folder / "recipe.toml").is_file():
            # Writing would make it anew, without what a run needs to be resumed.
            raise RunError(
                f"{self.folder}: the run folder is gone or was moved while the run worked in it. Step "
                f"{self.trainer.step} is not saved; put the folder back (or name its new place), then: konomi resume."
            )
        keep = self.job.recipe.run.keep_checkpoints
        path = write_checkpoint(self.folder / "checkpoints", self.trainer.state(), self.identity, keep=keep)
        return Checkpointed(self.trainer.step, str(path))

    def _save(self, *, final: bool) -> Saved:
        with self.trainer.weights_for_use():
            result = self.job.method.export()
        path = save_result(self.job, result, self.folder, step=self.trainer.step, final=final)
        return Saved(self.trainer.step, str(path))

    def _validate(self) -> Iterator[Event]:
        if self.held_out:
            with self.trainer.weights_for_use():
                loss = self._validation_loss()
            yield Validated(self.trainer.step, loss, self.base_loss)

    def _validation_loss(self) -> float:
        recipe = self.job.recipe
        objective = recipe.objective
        timesteps = spread_timesteps(recipe.validation.timesteps, objective.min_timestep, objective.max_timestep)
        loss = DenoisingLoss(self.job.base, recipe)
        with evaluating(*self.modules):
            return validation_loss(loss, self.held_out, timesteps, self.job.processes.device)

    def _preview(self) -> Iterator[Event]:
        try:
            with self.trainer.weights_for_use():
                paths = draw_previews(self.job, self.job.method.export(), self.folder / "previews", self.trainer.step)
        except (KonomiError, OSError, torch.OutOfMemoryError) as problem:
            # A preview is worth nothing beside the run: what was learned is safe, and training goes on.
            yield Warned(f"the previews of step {self.trainer.step} could not be drawn: {problem}")
            return
        yield Previewed(self.trainer.step, tuple(map(str, paths)))


def _new_run_folder(job: Job, *, overwrite: bool) -> Path:
    """The folder asked for, or the next free one below `runs/`. Raises RunError if it holds a run already."""
    asked = job.recipe.run.output
    folder = Path(asked) if asked else _next_free(Path("runs") / job.recipe.run.name)
    if job.processes.is_first:
        with explained(folder):
            if checkpoint_paths(folder / "checkpoints") and not overwrite:
                raise RunError(
                    f"{folder}: holds a run already. `konomi resume {folder}` goes on with it; another --output starts "
                    "a new one; --overwrite replaces it."
                )
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                _clear(folder)
    return folder


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


def _write_inputs(job: Job, folder: Path) -> None:
    write_text(folder / "recipe.toml", write_recipe(job.recipe))
    write_manifest(job.manifest, folder / "manifest.jsonl")


def _base_fingerprint(job: Job) -> str:
    place(job)
    parts: tuple[Literal["denoiser", "vae", "text"], ...] = ("denoiser", "vae", "text")
    return " ".join([job.base.family, *(job.base.fingerprint(part)[:16] for part in parts)])

"""`train` and `resume`: a run from its recipe to its last event. What happens between two steps:
`run_outputs`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from konomi.config.recipe import Recipe
from konomi.data.loader import BatchStream
from konomi.data.preflight import summary_lines
from konomi.errors import RunError
from konomi.models.memory import apply_memory_options
from konomi.storage.atomic import explained, sweep_temporaries
from konomi.storage.lock import RunLock
from konomi.tasks.branching import (
    Branch,
    changed_recipe,
    check_same_base,
    checkpoint_to_branch_at,
)
from konomi.tasks.checkpointing import Checkpoints
from konomi.tasks.class_images import draw_class_images, with_class_images
from konomi.tasks.predicted_start import predict_starts
from konomi.tasks.preparing import Job, open_stream, prepare
from konomi.tasks.run_folder import (
    AT_THE_END,
    moved,
    new_length,
    new_run_folder,
    recipe_of_run,
    to_do,
    write_inputs,
)
from konomi.tasks.run_outputs import RunOutputs
from konomi.tasks.run_previews import RunPreviews
from konomi.tasks.same_run import (
    identity_of,
    most_bytes,
    moved_phases,
    schedule_steps,
    with_schedule,
)
from konomi.tasks.saving import check_output_paths
from konomi.tasks.validating import Validation
from konomi.training.checkpoint import Checkpoint, newest_good
from konomi.training.events import Event, Finished, Started, Step, Warned
from konomi.training.identity import check_same_run, flat
from konomi.training.log import cut_log, logged
from konomi.training.stop import Stop, stop_on_signals
from konomi.training.trackers.tracker import TrackedRun
from konomi.training.tracking import Tracking, chosen_trackers
from konomi.training.trainer import Trainer


def train(recipe: Recipe, *, overwrite: bool = False, stop: Stop | None = None) -> Iterator[Event]:
    """Train; yields events until `Finished`.

    recipe: everything the run needs (`recipe_from_flags`, `read_recipe`).
    overwrite: start afresh in a run folder that has a run; without it that is an error.
    stop: another thread or the loop over the events may call its `request()` at any time: the run
        then ends after the step at hand, with a checkpoint to resume from, no result file, and
        `Finished(interrupted=True)`.

    Closing the iterator cancels, without a checkpoint. In the main thread SIGINT and SIGTERM end
    at once before the first step, and later request the stop. Raises KonomiError for anything the
    user can mend, before the first step wherever that can be known.
    """
    with stop_on_signals(stop or Stop()) as heeded:
        job = prepare(recipe)
        folder = new_run_folder(job, overwrite=overwrite)
        check_output_paths(job, folder, replace=overwrite)
        job = replace(job, recipe=moved(job.recipe, folder))
        yield from _run(job, folder, heeded, resuming=False, allow_changes=False)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    keep_schedule: bool = False,
    allow_changes: bool = False,
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Go on exactly where a run stopped; yields events until `Finished`. Where all steps are done,
    what is missing of result, validation and previews is made up for.

    run: the run folder.
    steps, epochs: new total number of optimiser steps, or of epochs (one of the two); by default
        the run's own total.
    keep_schedule: a new total does not move the learning rates; beyond the schedule its last rate
        stays.
    allow_changes: go on even if images, captions or the base are not what the run was started with.
    stop: as in `train`.

    Raises KonomiError for anything the user can mend.
    """
    with stop_on_signals(stop or Stop()) as heeded:
        run = Path(run)
        recipe = moved(recipe_of_run(run), run)
        job = prepare(replace(recipe, run=new_length(recipe.run, steps, epochs)))
        check_output_paths(job, run, replace=True)
        yield from _run(
            job,
            run,
            heeded,
            resuming=True,
            allow_changes=allow_changes,
            keep_schedule=keep_schedule,
        )


def branch(
    run: str | Path,
    at: int,
    changes: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Go back to a checkpoint of a run and go on with other settings, in a folder of its own;
    yields events until `Finished`. The other run stays as it is.

    run: the run folder to leave.
    at: the step, one that the run keeps a checkpoint of.
    changes: settings to change, each like `optimizer.learning_rate=1e-4`. What the checkpoint
        depends on (base, method, kind of optimiser, number format) cannot change.
    output: the new run folder; by default beside the other one, with a number.
    overwrite: replace a run that lies there.
    stop: as in `train`.

    Raises KonomiError for anything the user can mend.
    """
    with stop_on_signals(stop or Stop()) as heeded:
        parent = Path(run)
        recipe, changed = changed_recipe(recipe_of_run(parent), changes)
        job = prepare(replace(recipe, run=replace(recipe.run, output=str(output or ""))))
        start = Branch(parent, checkpoint_to_branch_at(job, parent, at), changed)
        if output is not None and Path(output).resolve() == parent.resolve():
            raise RunError(f"{output}: is the run that is to be left. Choose another --output.")
        folder = new_run_folder(job, overwrite=overwrite, beside=parent)
        check_output_paths(job, folder, replace=overwrite)
        job = replace(job, recipe=moved(job.recipe, folder))
        yield from _run(job, folder, heeded, resuming=False, allow_changes=True, start=start)


def _run(
    job: Job,
    folder: Path,
    stop: Stop,
    *,
    resuming: bool,
    allow_changes: bool,
    keep_schedule: bool = False,
    start: Branch | None = None,
) -> Iterator[Event]:
    with ExitStack() as stack:
        stack.callback(job.processes.leave)
        if job.processes.is_first:
            stack.enter_context(RunLock(folder))
            sweep_temporaries(folder)
            sweep_temporaries(folder / "checkpoints")
            sweep_temporaries(folder / "previews")
        trackers = chosen_trackers(job.recipe.run.trackers)
        warnings: list[str] = []
        newest = partial(
            newest_good, folder / "checkpoints", warn=warnings.append, most_bytes=most_bytes(job)
        )
        if job.processes.is_first and not resuming:
            yield from (
                Warned(note)
                for note in (*summary_lines(job.findings, job.manifest.excluded), *job.notes)
            )
        for news in draw_class_images(job):
            yield news
            if stop.requested:
                # Nothing is lost: what was drawn is kept.
                yield _stopped_early(job, newest() if resuming else None)
                return
        job = with_class_images(job)
        identity = identity_of(job)
        checkpoint = None
        missing: tuple[str, ...] = AT_THE_END
        if resuming or start is not None:
            if start is None:
                checkpoint = newest()
                warnings += check_same_run(checkpoint.run, identity, allow_changes=allow_changes)
            else:
                checkpoint = start.checkpoint
                check_same_base(checkpoint, identity, job.recipe)
                warnings += start.notes(identity)
            missing = to_do(job, folder, checkpoint)
            job, moved_note = with_schedule(job, checkpoint, keep=keep_schedule)
            warnings += [moved_note] if moved_note else []
            identity |= {"recipe": flat(job.recipe), "schedule_steps": schedule_steps(job)}
        if start is not None and job.processes.is_first:
            with explained(folder):
                write_inputs(job, folder)
            keep = job.recipe.run.keep_checkpoints
            checkpoint = start.begin(folder, identity, keep=keep)
        job.processes.wait()
        events = _events(job, folder, stop, checkpoint, identity, missing)
        if job.processes.is_first:
            with explained(folder):
                write_inputs(job, folder)
            done = 0 if checkpoint is None else checkpoint.state.numbers["step"]
            # A run that died before its first checkpoint has left lines as well, of its step 0 too.
            cut_log(folder, -1 if checkpoint is None else done)
            yield from (Warned(warning) for warning in warnings)
            tracked = TrackedRun(folder, job.recipe, done)
            yield from logged(events, folder, [Tracking(tracker, tracked) for tracker in trackers])
        else:
            yield from events
        job.processes.wait()


def _events(
    job: Job,
    folder: Path,
    stop: Stop,
    checkpoint: Checkpoint | None,
    identity: dict[str, Any],
    missing: tuple[str, ...],
) -> Iterator[Event]:
    previews = RunPreviews(job, folder / "previews", stop)
    validation = Validation(job)
    yield from previews.plan()
    stream: BatchStream | None = None
    for news in open_stream(job):
        if isinstance(news, BatchStream):
            stream = news
        else:
            yield news
        if stop.requested:
            # Nothing is lost: what was encoded is kept.
            yield _stopped_early(job, checkpoint)
            return
    if stream is None:
        raise AssertionError("open_stream ends with a stream")
    yield from validation.measure_base(checkpoint, identity)
    yield from predict_starts(job)
    checkpoints = Checkpoints(folder, job.recipe.run.keep_checkpoints, identity)
    phases = job.method.plan()
    try:
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
            checkpoints.last = checkpoint.path
            yield from (
                Warned(note) for note in moved_phases(phases, checkpoint, schedule_steps(job))
            )
        if job.processes.is_first:
            checkpoints.check_space(trainer)
        outputs = RunOutputs(job, folder, trainer, checkpoints, validation, previews, missing)
        yield from _loop(outputs, stream, stop)
    finally:
        job.method.close()


def _stopped_early(job: Job, checkpoint: Checkpoint | None) -> Finished:
    """A run that was asked to save and stop before it had anything new to save."""
    if job.processes.world > 1:
        # The others are not told, and would wait.
        raise KeyboardInterrupt
    done = 0 if checkpoint is None else checkpoint.state.numbers["step"]
    return Finished(done, "", interrupted=True)


def _loop(outputs: RunOutputs, stream: BatchStream, stop: Stop) -> Iterator[Event]:
    job, trainer = outputs.job, outputs.trainer
    yield Started(
        first_step=trainer.step,
        total_steps=job.total_steps,
        steps_per_epoch=stream.steps_per_epoch,
        trainable_parameters=sum(p.numel() for p in trainer.parameters.values()),
        device=str(job.processes.device),
        precision=str(job.precision).removeprefix("torch."),
    )
    if trainer.step == 0:
        yield from outputs.before_first_step()
    elif trainer.step < job.total_steps:
        yield from outputs.after_resume()
    stop.saves = True
    for event in trainer.run(stream, stop=stop, sync_at=outputs.is_due):
        yield event
        if isinstance(event, Step):
            yield from outputs.after_step(event.step)
    yield from outputs.finish(interrupted=trainer.step < job.total_steps)

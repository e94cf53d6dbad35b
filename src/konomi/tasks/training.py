"""`train` and `resume`: the loop, and what happens between two steps."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from konomi.config.recipe import Recipe
from konomi.data.batch import Examples
from konomi.data.loader import BatchStream
from konomi.data.preflight import spoken
from konomi.errors import RunError
from konomi.methods.method import Phase
from konomi.models.memory import apply_memory_options
from konomi.storage.atomic import check_free_space, explained, sweep_temporaries
from konomi.storage.lock import RunLock
from konomi.tasks.class_images import draw_class_images, with_class_images
from konomi.tasks.files import where_it_works
from konomi.tasks.measuring import held_out_loss
from konomi.tasks.next_steps import next_commands
from konomi.tasks.preparing import Job, held_out_stream, open_stream, prepare
from konomi.tasks.preview_schedule import PreviewPlan, cost_note, draws_previews, preview_plan
from konomi.tasks.previewing import draw_previews, preview_paths
from konomi.tasks.run_folder import (
    AT_THE_END,
    moved,
    new_length,
    new_run_folder,
    note_result,
    recipe_of_run,
    to_do,
    was_validated,
    write_inputs,
)
from konomi.tasks.same_run import identity_of, most_bytes, moved_phases, schedule_steps, with_schedule
from konomi.tasks.saving import When, check_way_is_free, result_path, save_result, saves_due, stem_of
from konomi.training.checkpoint import MARGIN, Checkpoint, delete_earlier, newest_good, write_checkpoint
from konomi.training.events import Checkpointed, Event, Finished, Previewed, Saved, Started, Step, Validated, Warned
from konomi.training.identity import check_same_run, flat, same_measured
from konomi.training.log import cut_log, logged
from konomi.training.optional_work import optional_work
from konomi.training.stop import Stop, stop_on_signals
from konomi.training.trackers.tracker import TrackedRun
from konomi.training.tracking import Tracking, chosen_trackers
from konomi.training.trainer import Trainer


def train(recipe: Recipe, *, overwrite: bool = False) -> Iterator[Event]:
    """Train; yields events until `Finished`. Closing the iterator cancels. SIGINT and SIGTERM end at once before the
    first step, and later save and end.

    Raises KonomiError for anything the user can mend, before the first step wherever that can be known.
    """
    with stop_on_signals() as stop:
        job = prepare(recipe)
        folder = new_run_folder(job, overwrite=overwrite)
        check_way_is_free(job, folder, replace=overwrite)
        job = replace(job, recipe=moved(job.recipe, folder))
        yield from _run(job, folder, stop, resuming=False, allow_changes=False)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    keep_schedule: bool = False,
    allow_changes: bool = False,
) -> Iterator[Event]:
    """Go on exactly where a run stopped, up to its total or to a new total of `steps` or `epochs`. Where all steps are
    done, what is missing of result, validation and previews is made up for.

    `keep_schedule`: a new total does not move the learning rates; beyond the schedule its last rate stays.
    """
    with stop_on_signals() as stop:
        run = Path(run)
        recipe = moved(recipe_of_run(run), run)
        job = prepare(replace(recipe, run=new_length(recipe.run, steps, epochs)))
        check_way_is_free(job, run, replace=True)
        yield from _run(job, run, stop, resuming=True, allow_changes=allow_changes, keep_schedule=keep_schedule)


def _run(
    job: Job, folder: Path, stop: Stop, *, resuming: bool, allow_changes: bool, keep_schedule: bool = False
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
        if job.processes.is_first and not resuming:
            yield from (Warned(note) for note in (*spoken(job.findings, job.manifest.excluded), *job.notes))
        for news in draw_class_images(job):
            yield news
            if stop.requested:
                # Nothing is lost: what was drawn is kept.
                raise KeyboardInterrupt
        job = with_class_images(job)
        identity = identity_of(job)
        checkpoint = None
        missing: tuple[str, ...] = AT_THE_END
        if resuming:
            checkpoint = newest_good(folder / "checkpoints", warn=warnings.append, most_bytes=most_bytes(job))
            warnings += check_same_run(checkpoint.run, identity, allow_changes=allow_changes)
            missing = to_do(job, folder, checkpoint)
            job, moved_note = with_schedule(job, checkpoint, keep=keep_schedule)
            warnings += [moved_note] if moved_note else []
            identity |= {"recipe": flat(job.recipe), "schedule_steps": schedule_steps(job)}
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
    work = Between(job, folder, identity, stop, missing)
    yield from work.plan_previews()
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
    yield from work.measure_base(checkpoint)
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
        work.checkpoint = checkpoint.path
        yield from (Warned(note) for note in moved_phases(phases, checkpoint, schedule_steps(job)))
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
    elif trainer.step < job.total_steps:
        yield from work.make_up()
    stop.saves = True
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
    stop: Stop
    missing: tuple[str, ...] = AT_THE_END
    """What is to be made after the last step."""
    trainer: Trainer = field(init=False)
    checkpoint: Path | None = None
    """The last one written or resumed from."""
    modules: tuple[nn.Module, ...] = ()
    """What the phases put into training mode, dropout among it."""
    held_out: list[Examples] = field(default_factory=list)
    base_loss: float = 0.0
    plan: PreviewPlan = field(default_factory=PreviewPlan)
    pictures: tuple[str, ...] = ()
    """The previews drawn last."""

    def is_due(self, step: int) -> bool:
        run = self.job.recipe.run
        every = (run.checkpoint_every, run.validate_every)
        return (
            saves_due(self.job, step) != ()
            or step in self.plan.steps
            or any(period and step % period == 0 for period in every)
        )

    def plan_previews(self) -> Iterator[Event]:
        """Decide when they are drawn, while the base is still as it was loaded."""
        if not self.job.processes.is_first:
            return
        # Without a plan there are still those at the end.
        notes: list[str] = []
        with optional_work("what previews cost could not be measured; they are drawn at the end alone", notes):
            self.plan = preview_plan(self.job)
        yield from map(Warned, [*notes, *([self.plan.note] if self.plan.note else [])])

    def measure_base(self, checkpoint: Checkpoint | None) -> Iterator[Event]:
        """The validation loss of the untouched base, before anything is attached; a resumed run remembers it."""
        if not self.job.recipe.run.validate_every or not self.job.processes.is_first:
            return
        stream = held_out_stream(self.job)
        if stream is None:
            return
        notes: list[str] = []
        with optional_work("the base could not be measured, and nothing will be validated", notes):
            held_out = [passes[0].subject for passes in stream.iterate(0, stream.steps_per_epoch)]
            known = None
            if checkpoint is not None and same_measured(checkpoint.run, self.identity):
                known = checkpoint.run.get("validation_base")
            if isinstance(known, float) and math.isfinite(known):
                self.base_loss = known
            else:
                self.base_loss = held_out_loss(self.job, held_out, None, ())
            self.identity["validation_base"] = self.base_loss
            self.held_out = held_out
        yield from map(Warned, notes)

    def after(self, step: int) -> Iterator[Event]:
        """After a step's event has been passed on. The last step is `finish`'s."""
        run = self.job.recipe.run
        if not self.job.processes.is_first or step >= self.job.total_steps:
            return
        if run.checkpoint_every and step % run.checkpoint_every == 0:
            yield self._checkpoint()
        for when in saves_due(self.job, step):
            yield self._save(when)
        if run.validate_every and step % run.validate_every == 0:
            yield from self._validate()
        if step in self.plan.steps:
            yield from self._preview()

    def make_up(self) -> Iterator[Event]:
        """What the run was cut off before, right after the checkpoint it goes on from."""
        step, job = self.trainer.step, self.job
        if not job.processes.is_first:
            return
        for when in saves_due(job, step):
            if not result_path(job, self.folder, stem_of(job, step, when)).exists():
                yield self._save(when)
        every = job.recipe.run.validate_every
        if every and step % every == 0 and not was_validated(self.folder, step):
            yield from self._validate()
        if step in self.plan.steps and not all(p.is_file() for p in preview_paths(job, self.folder / "previews", step)):
            yield from self._preview()

    def look(self) -> Iterator[Event]:
        """Before the first step: what the base itself does."""
        run = self.job.recipe.run
        if self.job.processes.is_first:
            if run.validate_every:
                yield from self._validate()
            if 0 in self.plan.steps:
                yield from self._preview()

    def finish(self, *, interrupted: bool) -> Iterator[Event]:
        """The last checkpoint, and the result file if the run is complete."""
        if not self.job.processes.is_first:
            yield Finished(self.trainer.step, "", interrupted)
            return
        last = self._checkpoint()
        yield last
        if interrupted:
            yield Finished(self.trainer.step, "", interrupted)
            return
        path = result_path(self.job, self.folder, self.job.recipe.run.name)
        if "result" in self.missing:
            yield self._save("end")
            note_result(Path(last.path), path)
        # Nothing is left to save: whoever does not want to wait for the rest may end it at once.
        self.stop.saves = False
        if "validation" in self.missing and self.job.recipe.run.validate_every:
            yield from self._validate()
        if "previews" in self.missing and draws_previews(self.job):
            yield from self._preview()
        commands = next_commands(self.job, self.folder, path)
        yield Finished(self.trainer.step, str(path), pictures=self.pictures, next_commands=commands)

    def check_space(self) -> None:
        """Raises RunError if not even the weights of a checkpoint fit on the disk: better known before step 1."""
        if self.job.processes.is_first:
            weights = sum(p.numel() * p.element_size() for p in self.trainer.parameters.values())
            check_free_space(self.folder, weights + MARGIN)

    def _checkpoint(self) -> Checkpointed:
        done, keep = self.checkpoint, self.job.recipe.run.keep_checkpoints
        if done is not None and done.name == f"step-{self.trainer.step:06d}":
            # Writing it once more would move the good one aside, and a kill in that moment would lose it.
            delete_earlier(done, keep)
            return Checkpointed(self.trainer.step, str(done))
        if not (self.folder / "recipe.toml").is_file():
            # Writing would make it anew, without what a run needs to be resumed.
            raise RunError(
                f"{self.folder}: the run folder is gone or was moved while the run worked in it. Step "
                f"{self.trainer.step} is not saved; put the folder back (or name its new place), then: konomi resume."
            )
        path = write_checkpoint(self.folder / "checkpoints", self.trainer.state(), self.identity, keep=keep)
        self.checkpoint = path
        return Checkpointed(self.trainer.step, str(path))

    def _save(self, when: When) -> Saved:
        with self.trainer.weights_for_use():
            result = self.job.method.export()
        step = self.trainer.step
        rates = {group.name: group.learning_rate for phase in self.trainer.phases for group in phase.groups}
        path = save_result(self.job, result, self.folder, step=step, when=when, rates=rates)
        works: list[str] = []
        if when == "end":
            with optional_work("where the result works was not found out", works):
                works += where_it_works(path)
        return Saved(self.trainer.step, str(path), tuple(works))

    def _validate(self) -> Iterator[Event]:
        if not self.held_out:
            return
        notes: list[str] = []
        loss = None
        with optional_work(f"step {self.trainer.step} could not be validated", notes), self.trainer.weights_for_use():
            loss = held_out_loss(self.job, self.held_out, self.trainer.phases[self.trainer.phase_index], self.modules)
        yield from map(Warned, notes)
        if loss is not None:
            yield Validated(self.trainer.step, loss, self.base_loss)

    def _drawn(self) -> list[Path]:
        result = self.job.method.export()
        return draw_previews(self.job, result, self.folder / "previews", self.trainer.step, self.stop)

    def _preview(self) -> Iterator[Event]:
        notes: list[str] = []
        paths: list[Path] = []
        # What was learned is safe by now: checkpoints and results come first.
        step = self.trainer.step
        started = time.perf_counter()
        with optional_work(f"the previews of step {step} could not be drawn", notes), self.trainer.weights_for_use():
            try:
                paths = self._drawn()
            except (RunError, OSError):
                # A disk that refuses once may take it the second time, and the weights of this step do not come back.
                paths = self._drawn()
        yield from map(Warned, notes)
        if paths:
            seconds = time.perf_counter() - started
            yield Previewed(step, tuple(map(str, paths)))
            if not self.pictures and not self.plan.note and step < self.job.total_steps:
                yield Warned(cost_note(self.plan, len(paths), seconds, self.job.total_steps))
            self.pictures = tuple(map(str, paths))
        elif self.job.recipe.run.preview_every == "auto":
            # What failed once would fail each time; at the end it is tried once more.
            self.plan = PreviewPlan()

"""What a run writes between two steps: checkpoints first, then result files, then what may fail
(previews).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from konomi.tasks.checkpointing import Checkpoints
from konomi.tasks.edit_strip import strip_of_run
from konomi.tasks.files import where_it_works
from konomi.tasks.next_steps import next_commands
from konomi.tasks.preparing import Job
from konomi.tasks.preview_schedule import draws_previews
from konomi.tasks.recipe_card import card_of_run
from konomi.tasks.reporting import ends_with_page, page_of_run
from konomi.tasks.run_folder import note_result, was_validated
from konomi.tasks.run_previews import RunPreviews
from konomi.tasks.saving import When, result_path, save_result, saves_due, stem_of
from konomi.tasks.validating import Validation
from konomi.training.events import Event, Finished, Saved, Warned
from konomi.training.optional_work import optional_work
from konomi.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class RunOutputs:
    """Which outputs are due when, and their order. Only the first of several processes writes
    any."""

    job: Job
    folder: Path
    trainer: Trainer
    checkpoints: Checkpoints
    validation: Validation
    previews: RunPreviews
    missing: tuple[str, ...]
    """What is to be made after the last step."""

    def is_due(self, step: int) -> bool:
        """Whether there is anything to do after a step."""
        run = self.job.recipe.run
        every = (run.checkpoint_every, run.validate_every)
        return (
            saves_due(self.job, step) != ()
            or self.previews.due(step)
            or any(period and step % period == 0 for period in every)
        )

    def before_first_step(self) -> Iterator[Event]:
        """What the base itself does."""
        if self.job.processes.is_first:
            if self.job.recipe.run.validate_every:
                yield from self._validate()
            if self.previews.due(0):
                yield from self.previews.draw(self.trainer)

    def after_step(self, step: int) -> Iterator[Event]:
        """After a step's event has been passed on. The last step is `finish`'s."""
        run = self.job.recipe.run
        if not self.job.processes.is_first or step >= self.job.total_steps:
            return
        if run.checkpoint_every and step % run.checkpoint_every == 0:
            yield self.checkpoints.write(self.trainer)
        for when in saves_due(self.job, step):
            yield self._save(when)
        if run.validate_every and step % run.validate_every == 0:
            yield from self._validate()
        if self.previews.due(step):
            yield from self.previews.draw(self.trainer)

    def after_resume(self) -> Iterator[Event]:
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
        if self.previews.due(step) and not self.previews.there(step):
            yield from self.previews.draw(self.trainer)

    def finish(self, *, interrupted: bool) -> Iterator[Event]:
        """The last checkpoint, and the result file if the run is complete."""
        if not self.job.processes.is_first:
            yield Finished(self.trainer.step, "", interrupted)
            return
        last = self.checkpoints.write(self.trainer)
        yield last
        if interrupted:
            yield Finished(self.trainer.step, "", interrupted)
            return
        path = result_path(self.job, self.folder, self.job.recipe.run.name)
        if "result" in self.missing:
            yield self._save("end")
            note_result(Path(last.path), path)
        # Nothing is left to save: whoever does not want to wait for the rest may end it at once.
        self.previews.stop.saves = False
        if "validation" in self.missing and self.job.recipe.run.validate_every:
            yield from self._validate()
        if "previews" in self.missing and draws_previews(self.job):
            yield from self.previews.draw(self.trainer)
        notes: list[str] = []
        strip = None
        if self.job.needs.edits_towards and draws_previews(self.job):
            strip = strip_of_run(self.job, self.folder, notes)
            notes += [] if strip is None else [strip.note]
        due = self.missing if ends_with_page() else ()
        step = self.trainer.step
        card = card_of_run(self.job, self.folder, step, notes) if "card" in due else ""
        page = page_of_run(self.folder, notes) if "report" in due else ""
        yield from map(Warned, notes)
        yield Finished(
            self.trainer.step,
            str(path),
            pictures=(*self.previews.pictures, *([] if strip is None else [strip.picture])),
            next_commands=next_commands(
                self.job, self.folder, path, eta=None if strip is None else strip.suggested
            ),
            report=page,
            card=card,
        )

    def modules(self) -> tuple[nn.Module, ...]:
        """What the phases put into training mode, dropout among it."""
        return tuple(module for phase in self.trainer.phases for module in phase.modules)

    def _validate(self) -> Iterator[Event]:
        yield from self.validation.measure(self.trainer, self.modules())

    def _save(self, when: When) -> Saved:
        with self.trainer.weights_for_use():
            result = self.job.method.export()
        step = self.trainer.step
        rates = {
            group.name: group.learning_rate
            for phase in self.trainer.phases
            for group in phase.groups
        }
        path = save_result(self.job, result, self.folder, step=step, when=when, rates=rates)
        works: list[str] = []
        if when == "end":
            with optional_work("which programs can use the result could not be determined", works):
                works += where_it_works(path)
        return Saved(step, str(path), tuple(works))

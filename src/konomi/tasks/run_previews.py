"""Previews in a run: when they are due, and that they are drawn; a run goes on without those that
cannot be.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from konomi.errors import RunError
from konomi.tasks.preparing import Job
from konomi.tasks.preview_schedule import PreviewPlan, cost_note, preview_plan
from konomi.tasks.previewing import draw_previews, preview_paths
from konomi.training.events import Event, Previewed, Warned
from konomi.training.optional_work import optional_work
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer


@dataclass(slots=True)
class RunPreviews:
    """The previews of a run."""

    job: Job
    folder: Path
    """Where the pictures lie."""
    stop: Stop
    schedule: PreviewPlan = field(default_factory=PreviewPlan)
    pictures: tuple[str, ...] = ()
    """Those drawn last."""

    def plan(self) -> Iterator[Event]:
        """Decide when they are drawn, while the base is still as it was loaded."""
        if not self.job.processes.is_first:
            return
        # Without a plan there are still those at the end.
        notes: list[str] = []
        with optional_work(
            "what previews cost could not be measured; they are drawn only at the end", notes
        ):
            self.schedule = preview_plan(self.job)
        yield from map(Warned, [*notes, *([self.schedule.note] if self.schedule.note else [])])

    def due(self, step: int) -> bool:
        return step in self.schedule.steps

    def there(self, step: int) -> bool:
        """Whether all pictures of a step are drawn."""
        return all(path.is_file() for path in preview_paths(self.job, self.folder, step))

    def draw(self, trainer: Trainer) -> Iterator[Event]:
        """The pictures of the step at hand."""
        notes: list[str] = []
        paths: list[Path] = []
        # What was learned is safe by now: checkpoints and results come first.
        step = trainer.step
        started = time.perf_counter()
        with (
            optional_work(f"the previews of step {step} could not be drawn", notes),
            trainer.weights_for_use(),
        ):
            try:
                paths = self._drawn(step)
            except (RunError, OSError):
                # A disk that refuses once may take it the second time, and the weights of this
                # step do not come back.
                paths = self._drawn(step)
        yield from map(Warned, notes)
        if paths:
            seconds = time.perf_counter() - started
            yield Previewed(step, tuple(map(str, paths)))
            if not self.pictures and not self.schedule.note and step < self.job.total_steps:
                yield Warned(cost_note(self.schedule, len(paths), seconds, self.job.total_steps))
            self.pictures = tuple(map(str, paths))
        elif self.job.recipe.run.preview_every == "auto":
            # What failed once would fail each time; at the end it is tried once more.
            self.schedule = PreviewPlan()

    def _drawn(self, step: int) -> list[Path]:
        return draw_previews(self.job, self.job.method.export(), self.folder, step, self.stop)

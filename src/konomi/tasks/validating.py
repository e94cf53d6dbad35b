"""Validation in a run: the base is measured once, before anything is attached to it, and what is
trained beside it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from konomi.data.batch import Examples
from konomi.tasks.measuring import held_out_loss
from konomi.tasks.preparing import Job, held_out_stream
from konomi.training.checkpoint import Checkpoint
from konomi.training.events import Event, Validated, Warned
from konomi.training.identity import same_measured
from konomi.training.optional_work import optional_work
from konomi.training.trainer import Trainer


@dataclass(slots=True)
class Validation:
    """The loss on held-out images, of the base and of what it becomes. Where nothing is validated,
    no images.
    """

    job: Job
    held_out: list[Examples] = field(default_factory=list)
    base_loss: float = 0.0

    def measure_base(
        self, checkpoint: Checkpoint | None, identity: dict[str, Any]
    ) -> Iterator[Event]:
        """The loss of the untouched base; a resumed run remembers it. It is added to the run's
        `identity`.
        """
        if not self.job.recipe.run.validate_every or not self.job.processes.is_first:
            return
        stream = held_out_stream(self.job)
        if stream is None:
            return
        notes: list[str] = []
        with optional_work("the base could not be measured, and nothing will be validated", notes):
            held_out = [batches[0].subject for batches in stream.iterate(0, stream.steps_per_epoch)]
            known = None
            if checkpoint is not None and same_measured(checkpoint.run, identity):
                known = checkpoint.run.get("validation_base")
            if isinstance(known, float) and math.isfinite(known):
                self.base_loss = known
            else:
                self.base_loss = held_out_loss(self.job, held_out, None, ())
            identity["validation_base"] = self.base_loss
            self.held_out = held_out
        yield from map(Warned, notes)

    def measure(self, trainer: Trainer, modules: Sequence[nn.Module]) -> Iterator[Event]:
        """The loss after the step at hand. `modules`: what is in training mode."""
        if not self.held_out:
            return
        notes: list[str] = []
        loss = None
        with (
            optional_work(f"step {trainer.step} could not be validated", notes),
            trainer.weights_for_use(),
        ):
            loss = held_out_loss(
                self.job, self.held_out, trainer.phases[trainer.phase_index], modules
            )
        yield from map(Warned, notes)
        if loss is not None:
            yield Validated(trainer.step, loss, self.base_loss)

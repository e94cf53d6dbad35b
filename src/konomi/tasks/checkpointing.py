"""The checkpoints of a run, as it goes on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konomi.errors import RunError
from konomi.storage.atomic import check_free_space
from konomi.training.checkpoint import MARGIN, delete_earlier, write_checkpoint
from konomi.training.events import Checkpointed
from konomi.training.trainer import Trainer


@dataclass(slots=True)
class Checkpoints:
    """Writes the state of a run into its folder, and keeps so many."""

    folder: Path
    """The run's."""
    keep: int
    identity: dict[str, Any]
    """What must be the same for a run to be gone on with."""
    last: Path | None = None
    """The last one written or resumed from."""

    def check_space(self, trainer: Trainer) -> None:
        """Raises RunError if not even the weights of a checkpoint fit on the disk: better known
        before step 1.
        """
        weights = sum(p.numel() * p.element_size() for p in trainer.parameters.values())
        check_free_space(self.folder, weights + MARGIN)

    def write(self, trainer: Trainer) -> Checkpointed:
        """The state after the step at hand. Raises RunError where the run folder is gone, or for
        the disk.
        """
        done = self.last
        if done is not None and done.name == f"step-{trainer.step:06d}":
            # Writing it once more would move the good one aside, and a kill in that moment would
            # lose it.
            delete_earlier(done, self.keep)
            return Checkpointed(trainer.step, str(done))
        if not (self.folder / "recipe.toml").is_file():
            # Writing would make it anew, without what a run needs to be resumed.
            raise RunError(
                f"{self.folder}: the run folder is gone or was moved while the run worked in it. "
                f"Step {trainer.step} is not saved; put the folder back (or name its new place), "
                "then: konomi resume."
            )
        path = write_checkpoint(
            self.folder / "checkpoints", trainer.state(), self.identity, keep=self.keep
        )
        self.last = path
        return Checkpointed(trainer.step, str(path))

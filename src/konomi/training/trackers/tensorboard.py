"""TensorBoard events in `tensorboard/`: `tensorboard --logdir RUN`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from konomi.training.trackers.tracker import TrackedRun

FLUSH_SECONDS = 30


class TensorBoard:
    """A file of events for each sitting; TensorBoard shows them as one run."""

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboardX"
    extra: ClassVar[str] = ""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        self.note = ""
        # Steps after the checkpoint are done again, so what an earlier sitting wrote of them is
        # void.
        redone = run.step + 1 if run.step else None
        self.writer = SummaryWriter(
            str(run.folder / self.name),
            flush_secs=FLUSH_SECONDS,
            purge_step=redone,
            # Files are named by the second; a run resumed within one would write over its own
            # beginning.
            filename_suffix=f".{run.step}",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        for index, path in enumerate(paths):
            with Image.open(path) as picture:
                self.writer.add_image(
                    f"preview/{index}", np.asarray(picture.convert("RGB")), step, dataformats="HWC"
                )

    def close(self) -> None:
        self.writer.close()

"""Getting losses to the host without making the device wait."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konomi.training.events import Step


@dataclass(slots=True)
class Pending:
    """A step whose loss is on its way."""

    event: Step
    files: tuple[str, ...]
    value: Tensor
    ready: torch.cuda.Event | None


@dataclass(slots=True)
class Readout:
    """A short queue: on CUDA a loss is read one step late, when it has long been computed;
    elsewhere at once.
    """

    device: torch.device
    queue: deque[Pending] = field(default_factory=deque)

    def put(self, event: Step, files: tuple[str, ...], loss: Tensor) -> None:
        """`loss`: a scalar tensor on the device."""
        if self.device.type != "cuda":
            self.queue.append(Pending(event, files, loss, None))
            return
        host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        host.copy_(loss, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        self.queue.append(Pending(event, files, host, ready))

    def take(self, *, everything: bool) -> Iterator[tuple[Step, tuple[str, ...], float]]:
        """Finished steps with their files and losses; on CUDA all but the latest unless
        `everything`.
        """
        keep = 0 if everything or self.device.type != "cuda" else 1
        while len(self.queue) > keep:
            pending = self.queue.popleft()
            if pending.ready is not None:
                pending.ready.synchronize()
            yield pending.event, pending.files, float(pending.value)

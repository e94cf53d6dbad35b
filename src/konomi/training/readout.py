"""Getting losses to the host without making the device wait."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konomi.data.batch import Batch, LossRecord
from konomi.training.events import Step


def readings(
    loss: Tensor, micro_batches: Sequence[Batch], records: Sequence[LossRecord], batch_size: int
) -> Tensor:
    """Float32 [1 + 2 S]: the loss, then that of each of the step's S = `batch_size` subjects, then
    their timesteps; 0 where it is not known here: another process's, or nobody computed it.
    """
    table = torch.zeros((2, batch_size), device=loss.device)
    for batch, record in zip(micro_batches, records, strict=True):
        if not batch.images or record.losses_B is None or record.timesteps_B is None:
            continue
        place = slice(batch.first, batch.first + len(batch.subject))
        table[0, place], table[1, place] = record.losses_B, record.timesteps_B
    return torch.cat([loss.view(1), table.view(-1)])


@dataclass(slots=True)
class Pending:
    """A step whose losses are on their way."""

    event: Step
    files: tuple[str, ...]
    """This process's."""
    images: tuple[int, ...]
    """Of the subjects of all processes."""
    values: Tensor
    ready: torch.cuda.Event | None


@dataclass(slots=True)
class Readout:
    """A short queue: on CUDA losses are read one step late, when they have long been computed;
    elsewhere at once.
    """

    device: torch.device
    queue: deque[Pending] = field(default_factory=deque)

    def put(self, event: Step, micro_batches: Sequence[Batch], values: Tensor) -> None:
        """`values`: float32 [1 + 2 S] on the device, as `readings` makes them; one copy for all."""
        files, images = _files(micro_batches), micro_batches[0].images if micro_batches else ()
        if self.device.type != "cuda":
            self.queue.append(Pending(event, files, images, values, None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        self.queue.append(Pending(event, files, images, host, ready))

    def take(self, *, everything: bool) -> Iterator[tuple[Pending, list[float]]]:
        """Finished steps and their values; on CUDA all but the latest unless `everything`."""
        keep = 0 if everything or self.device.type != "cuda" else 1
        while len(self.queue) > keep:
            pending = self.queue.popleft()
            if pending.ready is not None:
                pending.ready.synchronize()
            yield pending, pending.values.tolist()


def _files(micro_batches: Sequence[Batch]) -> tuple[str, ...]:
    examples = [e for batch in micro_batches for e in (batch.subject, batch.prior) if e is not None]
    return tuple(name for e in examples for name in e.names)

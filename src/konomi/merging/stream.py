"""Tensors through a formula into a file: several threads read, compute and write, each a piece of
some hundred thousand values at a time where the formula allows it, and a tensor where not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from konomi.errors import FileFormatError
from konomi.hardware.cores import usable_cores
from konomi.merging.model_file import Stored
from konomi.storage.tensor_file import is_finite, place_of_type, tensor_bytes
from konomi.storage.tensor_stream import PlannedTensor, TensorWriter, tensor_writer

_PIECE = 1 << 18
"""Values computed at once: a few of them in float32 stay in a processor's second cache."""
_LARGE = 1 << 24
"""Values of a tensor above which one thread alone works on a tensor as a whole, so that memory
holds the intermediate results of one such tensor and not of several."""
_WORKERS = 4
"""Threads at most: more wait for the disk or for memory."""

Formula = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the result."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    inputs: tuple[tuple[str, Stored], ...]
    """(where it is from, for messages; the tensor)."""
    formula: Formula | None = None
    """Of the inputs, all of the result's shape and in float32; None copies the one there is."""
    by_value: bool = False
    """The formula may be applied in pieces."""
    rounds_once: bool = False
    """The formula gives the same where it is handed inputs of the result's half precision."""

    @property
    def bytes_read(self) -> int:
        return sum(math.prod(one.shape) * one.dtype.itemsize for _, one in self.inputs)

    @property
    def direct(self) -> bool:
        """Whether nothing has to be converted."""
        same = all(one.dtype == self.dtype for _, one in self.inputs)
        return same and (self.formula is None or self.rounds_once)


def write_merged(
    output: Path,
    jobs: Sequence[Job],
    metadata: Mapping[str, str],
    *,
    finish: Callable[[], Mapping[str, str]] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Write the results of all jobs to a new `.safetensors` file, which appears whole or not at
    all.

    metadata: of the file.
    finish: asked at the end for the final metadata, which is no longer than `metadata`.
    progress: is handed the bytes read so far, and in all.

    Raises FileFormatError naming the file and tensor where NaN or infinity is met, RunError for
    the disk's refusals.
    """
    ordered = sorted(jobs, key=lambda job: place_of_type(job.dtype))
    planned = [PlannedTensor(job.name, job.dtype, job.shape) for job in ordered]
    total, done = sum(job.bytes_read for job in ordered), 0
    with tensor_writer(output, planned, metadata) as writer, _one_thread_each() as threads:
        work = _Work(writer)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for job, future in [
                    (job, pool.submit(work.do, number, job)) for number, job in enumerate(ordered)
                ]:
                    future.result()
                    done += job.bytes_read
                    progress(done, total)
            except BaseException:
                # What has not begun must not begin; the threads end with the piece they are at.
                work.stopped = True
                pool.shutdown(cancel_futures=True)
                raise
        if finish is not None:
            writer.metadata = finish()


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """How many threads there are; PyTorch starts no further ones for the operations of each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield max(2, min(usable_cores(), _WORKERS))
    finally:
        torch.set_num_threads(before)


class _Work:
    """What the threads share."""

    def __init__(self, writer: TensorWriter) -> None:
        self.stopped = False
        self._writer = writer
        self._buffers = _Buffers()
        self._large = threading.Lock()

    @torch.no_grad()
    def do(self, number: int, job: Job) -> None:
        """Raises FileFormatError for NaN and infinity."""
        if job.formula is None or job.by_value:
            self._in_pieces(number, job)
        elif math.prod(job.shape) < _LARGE:
            self._whole(number, job)
        else:
            with self._large:
                self._whole(number, job)

    def _whole(self, number: int, job: Job) -> None:
        inputs = [stored.read().reshape(job.shape) for _, stored in job.inputs]
        result = computed(job, inputs)
        if not self.stopped:
            self._writer.write(number, result.reshape(job.shape))

    def _in_pieces(self, number: int, job: Job) -> None:
        count, width = math.prod(job.shape), job.dtype.itemsize
        readers = [
            partial(self._buffers.read, slot, stored)
            if stored.read_into is not None
            else partial(_piece_of, stored.read().reshape(-1))
            for slot, (_, stored) in enumerate(job.inputs)
        ]
        for first in range(0, count, _PIECE):
            if self.stopped:
                return
            size = min(_PIECE, count - first)
            inputs = [read(first, size) for read in readers]
            result = computed(job, inputs, self._buffers)
            self._writer.write_piece(number, first * width, tensor_bytes(result))


def _piece_of(flat: Tensor, first: int, size: int) -> Tensor:
    return flat[first : first + size]


class _Buffers(threading.local):
    """Memory of one thread for pieces, used again and again: the system takes longer to give new
    memory than to fill it.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, torch.dtype], Tensor] = {}

    def read(self, slot: int, stored: Stored, first: int, size: int) -> Tensor:
        """`size` values of a tensor from one of them on. `slot` is the number of the input."""
        assert stored.read_into is not None
        piece = self._of(slot, stored.dtype)[:size]
        stored.read_into(first * stored.dtype.itemsize, tensor_bytes(piece))
        return piece

    def in_float32(self, slot: int, piece: Tensor) -> Tensor:
        if piece.dtype == torch.float32:
            return piece
        # Beside what was read: the slots of float32 files are never those of converted ones.
        return self._of(~slot, torch.float32)[: len(piece)].copy_(piece)

    def _of(self, slot: int, dtype: torch.dtype) -> Tensor:
        if (slot, dtype) not in self._found:
            self._found[slot, dtype] = torch.empty(_PIECE, dtype=dtype)
        return self._found[slot, dtype]


def computed(job: Job, inputs: Sequence[Tensor], buffers: _Buffers | None = None) -> Tensor:
    """The result of one job, or of a piece of it. Raises FileFormatError for NaN and infinity."""
    if job.formula is None:
        merged = inputs[0]
    elif job.direct:
        merged = job.formula(inputs)
    elif buffers is None:
        merged = job.formula([tensor.to(torch.float32) for tensor in inputs])
    else:
        merged = job.formula([buffers.in_float32(n, piece) for n, piece in enumerate(inputs)])
    # What is beyond the range of the type becomes infinity in it, so one look is enough.
    result = merged.to(job.dtype).contiguous()
    if not is_finite(result):
        raise _not_finite(job, inputs)
    return result


def _not_finite(job: Job, inputs: Sequence[Tensor]) -> FileFormatError:
    for (where, _), tensor in zip(job.inputs, inputs, strict=True):
        if not is_finite(tensor):
            return FileFormatError(
                f"{where}: {job.name} holds NaN or infinity, so nothing is written. The file is "
                "broken; take another."
            )
    word = str(job.dtype).removeprefix("torch.")
    return FileFormatError(
        f"{job.name}: the result has values beyond {word}'s range, so nothing is written. Choose "
        "--precision fp32 or bf16, or smaller weights."
    )

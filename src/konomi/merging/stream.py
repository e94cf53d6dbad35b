"""Tensors through a formula into a file: while one is computed, the next are read and the last is
written, and no more of them are in memory than these.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from konomi.errors import FileFormatError
from konomi.merging.model_file import Stored
from konomi.storage.tensor_file import is_finite, place_of_type
from konomi.storage.tensor_stream import PlannedTensor, tensor_writer

_AHEAD = 64 << 20
"""Bytes read ahead, and bytes that wait to be written."""
_PIECE = 1 << 18
"""Values computed at once: a few of them in float32 stay in a processor's second cache."""

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

    @property
    def bytes_read(self) -> int:
        return sum(math.prod(one.shape) * one.dtype.itemsize for _, one in self.inputs)


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
    sizes = [job.bytes_read for job in ordered]
    total, done, begun, ahead, waiting = sum(sizes), 0, 0, 0, 0
    with (
        tensor_writer(output, planned, metadata) as writer,
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
    ):
        read: deque[Future[list[Tensor]]] = deque()
        unwritten: deque[tuple[int, Future[None]]] = deque()
        try:
            for job, size in zip(ordered, sizes, strict=True):
                while begun < len(ordered) and (not read or ahead + sizes[begun] <= _AHEAD):
                    read.append(reading.submit(_read, ordered[begun]))
                    ahead += sizes[begun]
                    begun += 1
                result = computed(job, read.popleft().result())
                ahead -= size
                unwritten.append((result.nbytes, writing.submit(writer.write, result)))
                waiting += result.nbytes
                del result
                while unwritten and (unwritten[0][1].done() or waiting > _AHEAD):
                    written, future = unwritten.popleft()
                    future.result()
                    waiting -= written
                done += size
                progress(done, total)
            for _, future in unwritten:
                future.result()
        except BaseException:
            # What has not begun must not begin; the threads end with what they are at.
            reading.shutdown(wait=False, cancel_futures=True)
            writing.shutdown(wait=False, cancel_futures=True)
            raise
        if finish is not None:
            writer.metadata = finish()


def _read(job: Job) -> list[Tensor]:
    return [stored.read().reshape(job.shape) for _, stored in job.inputs]


@torch.no_grad()
def computed(job: Job, inputs: Sequence[Tensor]) -> Tensor:
    """The result of one job. Raises FileFormatError for NaN and infinity."""
    if job.formula is None:
        result = inputs[0].to(job.dtype)
        if not is_finite(result):
            raise _not_finite(job, inputs)
        return result.contiguous()
    if not job.by_value:
        merged = job.formula([tensor.to(torch.float32) for tensor in inputs])
        if not _fits(merged, job.dtype):
            raise _not_finite(job, inputs)
        return merged.to(job.dtype).contiguous()
    result = torch.empty(job.shape, dtype=job.dtype)
    pieces = [tensor.reshape(-1).split(_PIECE) for tensor in inputs]
    for target, *given in zip(result.view(-1).split(_PIECE), *pieces, strict=True):
        merged = job.formula([piece.to(torch.float32) for piece in given])
        if not _fits(merged, job.dtype):
            raise _not_finite(job, inputs)
        target.copy_(merged)
    return result


def _fits(merged: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are numbers, in the type they will be stored in too."""
    if not merged.numel() or not dtype.is_floating_point:
        return True
    low, high = torch.aminmax(merged)
    return bool(max(-float(low), float(high)) <= torch.finfo(dtype).max)


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

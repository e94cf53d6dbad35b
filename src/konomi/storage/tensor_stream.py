"""safetensors files read and written tensor by tensor, so that neither is ever in memory whole.

Tensors are read into memory of their own, not mapped: a mapped file of 7 GB would count as memory
of the process, and a machine that is short of it would have to push other programs out first.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from konomi.errors import FileFormatError, RunError
from konomi.storage.atomic import check_free_space, sweep_temporaries, write_file
from konomi.storage.tensor_file import (
    TORCH_NAMES,
    TYPE_BYTES,
    Header,
    dtype_word,
    read_header,
    tensor_bytes,
    write_all,
)

_SLACK = 1 << 20
"""Bytes that a file system needs besides."""


class TensorReader:
    """An open safetensors file. Also a context manager."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileFormatError as `read_header` does."""
        self.path = Path(path)
        self.header: Header = read_header(self.path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise FileFormatError(f"{self.path}: cannot be read ({error.strerror}).") from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own. May be called by several threads.

        Raises FileFormatError where the file has become shorter meanwhile, or cannot be read.
        """
        info = self.header.tensors[name]
        stored = torch.empty(info.size, dtype=torch.uint8)
        self.read_into(name, 0, tensor_bytes(stored))
        return stored.view(torch_dtype(info.dtype)).reshape(info.shape)

    def read_into(self, name: str, first: int, target: memoryview) -> None:
        """Fill a buffer with the bytes of a tensor, from its byte `first` on. May be called by
        several threads. Raises as `read` does.
        """
        start = self.header.data_start + self.header.tensors[name].start + first
        try:
            done = 0
            while done < len(target):
                got = _read_into(self._descriptor, target[done:], start + done)
                if not got:
                    raise FileFormatError(f"{self.path}: has become shorter while it was read.")
                done += got
        except OSError as error:
            raise FileFormatError(f"{self.path}: cannot be read ({error.strerror}).") from error

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def torch_dtype(word: str) -> torch.dtype:
    """The format's word for a type as torch's. Raises FileFormatError for one torch lacks."""
    for name, known in TORCH_NAMES.items():
        if known == word:
            dtype: torch.dtype = getattr(torch, name)
            return dtype
    raise FileFormatError(f"{word}: PyTorch has no such type of numbers.")


_MOVED = threading.Lock()
"""Windows has one position for a file; elsewhere each call names its own."""


def _read_into(descriptor: int, view: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], start)
    with _MOVED:
        os.lseek(descriptor, start, os.SEEK_SET)
        block = os.read(descriptor, len(view))
    view[: len(block)] = block
    return len(block)


def _write_at(descriptor: int, block: memoryview, start: int) -> None:
    if not hasattr(os, "pwrite"):
        with _MOVED:
            os.lseek(descriptor, start, os.SEEK_SET)
            write_all(descriptor, block)
        return
    while block:
        done = os.pwrite(descriptor, block[: 1 << 30], start)
        block, start = block[done:], start + done


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of a file that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * TYPE_BYTES[dtype_word(self.name, self.dtype)]


class TensorWriter:
    """A file whose tensors have been planned; they are written in any order, whole or in pieces,
    by any thread.
    """

    def __init__(
        self,
        descriptor: int,
        planned: Sequence[PlannedTensor],
        metadata: Mapping[str, str],
        header_size: int,
    ) -> None:
        self.planned = planned
        self.metadata = metadata
        """May be replaced until the end, by a table that is not longer: what is known only when
        everything has been read (hashes) is planned as a text of the same length."""
        self._descriptor = descriptor
        self._header_size = header_size
        ends = itertools.accumulate((plan.size for plan in planned), initial=header_size)
        self._starts = tuple(ends)[:-1]
        self._written = [0] * len(planned)

    def write(self, number: int, tensor: Tensor) -> None:
        """The whole of tensor `number` of the plan."""
        plan = self.planned[number]
        assert (tensor.dtype, tuple(tensor.shape)) == (plan.dtype, plan.shape), plan.name
        self.write_piece(number, 0, tensor_bytes(tensor))

    def write_piece(self, number: int, first: int, block: memoryview) -> None:
        """Bytes of tensor `number`, from its byte `first` on."""
        _write_at(self._descriptor, block, self._starts[number] + first)
        self._written[number] += len(block)

    def _finish(self) -> None:
        assert self._written == [plan.size for plan in self.planned]
        header = _header(self.planned, self.metadata, self._header_size)
        assert len(header) == self._header_size
        _write_at(self._descriptor, memoryview(header), 0)


@contextlib.contextmanager
def tensor_writer(
    path: Path | str, planned: Sequence[PlannedTensor], metadata: Mapping[str, str]
) -> Iterator[TensorWriter]:
    """Write a file tensor by tensor; it appears whole when the block ends, or not at all.

    planned: what will be written, in this order. Types of wider numbers come first, as the format
        wants them to lie at multiples of their size.
    metadata: as for `write_tensors`.

    Nothing may stand at `path`. Raises RunError for a lack of space, found before anything is
    written, and for the disk's refusals.
    """
    path = Path(path)
    header = _header(planned, metadata)
    if path.parent.is_dir():
        # What a killed process left of such a file may be larger than the room that is free.
        sweep_temporaries(path.parent)
    check_free_space(path.parent, _SLACK + len(header) + sum(plan.size for plan in planned))
    with write_file(path) as temporary, temporary.open("wb", buffering=0) as file:
        writer = TensorWriter(file.fileno(), planned, metadata, len(header))
        yield writer
        writer._finish()
        if path.exists():
            raise RunError(
                f"{path}: has been written by another program meanwhile, and stays as it is. "
                "Choose another name."
            )


def _header(
    planned: Sequence[PlannedTensor], metadata: Mapping[str, str], length: int | None = None
) -> bytes:
    """Length and header, filled with spaces up to `length` or to a multiple of eight."""
    table: dict[str, Any] = {}
    if metadata:
        table["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for plan in planned:
        table[plan.name] = {
            "dtype": dtype_word(plan.name, plan.dtype),
            "shape": list(plan.shape),
            "data_offsets": [position, position + plan.size],
        }
        position += plan.size
    raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8 if length is None else length - 8 - len(raw))
    return struct.pack("<Q", len(raw)) + raw

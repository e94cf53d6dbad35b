"""safetensors files: checked before anything is allocated, written atomically and with the same
bytes every time.

Layout: 8 bytes little-endian length of the header, the header (JSON), the data. The library writes
metadata in the order of a hash map, which differs from process to process; here it is sorted, so
equal content gives an equal file.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.storage.atomic import write_file
from konomi.storage.sniff import FileKind, refuse, sniff

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER = 100_000_000
"""Bytes; the library's own limit."""

# In the order in which the library sorts tensors (last first), so that data written here has the
# same layout.
TYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of one number, by the format's word for its type."""
_ORDER = {dtype: index for index, dtype in enumerate(TYPE_BYTES)}
TORCH_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0", "int16": "I16", "uint16": "U16", "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "complex64": "C64", "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}  # fmt: skip
"""Name of a type in torch -> the format's word."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header declares it; the declaration has been checked."""

    dtype: str
    """`F32`, `BF16`, ..."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    """First byte of the data in the file."""


def read_header(path: Path | str) -> Header:
    """Read and check the header. Costs the header's size in memory, whatever it claims of the
    tensors.

    Raises FileFormatError naming the file, and the tensor where one is at fault: not a safetensors
    file, cut short, unknown type, negative or absurd shape, size unlike shape x type, overlap,
    hole, data after the last tensor.
    """
    path = Path(path)
    kind = sniff(path)
    if kind is not FileKind.SAFETENSORS:
        raise refuse(path, kind, "a safetensors file")
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER or length > file_size - 8:
                raise FileFormatError(
                    f"{path}: the header claims {length} bytes; the file has {file_size}."
                )
            raw = file.read(length)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        entries = parse_json(raw, unique_keys=True)
    except ValueError as error:
        raise FileFormatError(f"{path}: the safetensors header is damaged ({error}).") from error
    if not isinstance(entries, dict):
        raise FileFormatError(
            f"{path}: the safetensors header is damaged (not a table of tensors)."
        )
    metadata = entries.pop("__metadata__", {}) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise FileFormatError(f"{path}: the metadata is not a table of texts.")
    tensors = {name: _checked_info(path, name, entry) for name, entry in entries.items()}
    _check_layout(path, tensors, file_size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def read_tensors(
    path: Path | str, names: Iterable[str] | None = None, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """All tensors of a file, or those named. Pages are mapped, so memory is used as tensors are
    touched.

    Raises FileFormatError as `read_header` does, and for a name the file does not hold.
    """
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    wanted = list(header.tensors) if names is None else list(names)
    missing = [name for name in wanted if name not in header.tensors]
    if missing:
        raise FileFormatError(f"{path}: holds no tensor named {missing[0]}.")
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in wanted}
    except SafetensorError as error:
        raise FileFormatError(f"{path}: the safetensors library refuses it ({error}).") from error


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file atomically. Equal tensors and metadata give equal bytes; the data is laid out
    as the library does.

    Raises FileFormatError naming a tensor that holds NaN or infinity or has a type the format
    lacks, RunError for the disk's refusals. An earlier file at the path stays as it was.
    """
    check_finite(tensors, str(path))
    with write_file(path) as temporary, temporary.open("wb", buffering=0) as file:
        for block in serialised(tensors, metadata or {}):
            write_all(file.fileno(), block)


def serialised(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[memoryview | bytes]:
    """The file as blocks of bytes: length and header first, then one block per tensor."""
    ordered = sorted(
        tensors.items(), key=lambda item: (-_ORDER[dtype_name(item[0], item[1])], item[0])
    )
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": dtype_name(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    yield struct.pack("<Q", len(raw)) + raw
    for _, tensor in ordered:
        yield tensor_bytes(tensor)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values in memory order of its shape, of any type, copied only if on a device or
    not contiguous.
    """
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    values: Any = flat.view(torch.uint8).numpy()
    return memoryview(values)


def dtype_name(name: str, tensor: Tensor) -> str:
    """The format's word for a tensor's type. Raises FileFormatError if it has none."""
    return dtype_word(name, tensor.dtype)


def dtype_word(name: str, dtype: torch.dtype) -> str:
    """The same of a type; `name` is that of the tensor, for the message."""
    word = TORCH_NAMES.get(str(dtype).removeprefix("torch."))
    if word is None:
        raise FileFormatError(f"{name}: {dtype} cannot be stored in a safetensors file.")
    return word


def place_of_type(dtype: torch.dtype) -> int:
    """Where tensors of a type lie in a file: wider numbers come first, as the library sorts
    them.
    """
    return -_ORDER[dtype_word("", dtype)]


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise FileFormatError naming the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise FileFormatError(
                f"{where}: {name} holds NaN or infinity, so nothing is written. "
                "Go back to an earlier checkpoint; a lower learning rate or run.precision = 'fp32' "
                "helps."
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number; needs no memory beyond the tensor's."""
    import torch

    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()
    # The extremes carry NaN through and show infinities, without the mask that isfinite would
    # allocate.
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _checked_info(path: Path, name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{path}: {name} is not declared with dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TYPE_BYTES:
        raise FileFormatError(f"{path}: {name} has the unknown type {str(dtype)[:40]!r}.")
    if not _naturals(shape) or len(shape) > 64 or not _naturals(offsets) or len(offsets) != 2:
        raise FileFormatError(
            f"{path}: {name} has a shape or position that is not a list of whole numbers."
        )
    start, end = offsets
    if end - start != math.prod(shape) * TYPE_BYTES[dtype]:
        raise FileFormatError(
            f"{path}: {name} of shape {shape} and type {dtype} cannot take {end - start} bytes."
        )
    return TensorInfo(dtype, tuple(shape), start, end - start)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_size: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if info.start != position:
            fault = (
                "overlaps another tensor"
                if info.start < position
                else "lies behind a hole in the data"
            )
            raise FileFormatError(f"{path}: {name} {fault}; the file is damaged or tampered with.")
        position += info.size
        if position > data_size:
            raise FileFormatError(
                f"{path}: cut short inside {name}, which ends at byte {position} of the data; "
                f"{data_size} are there. Download it again."
            )
    if position != data_size:
        raise FileFormatError(
            f"{path}: {data_size - position} bytes follow the last tensor; the file is damaged."
        )


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


def write_all(descriptor: int, block: memoryview | bytes) -> None:
    """Write a block to its end, however little the system takes at once."""
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest[: 1 << 30]) :]

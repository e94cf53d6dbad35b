"""Rows of tensors by key, in memory or in safetensors shards that are mapped, not loaded.

A shard holds rows whose tensors agree in name, type and shape: each tensor stacked over the rows,
a CRC-32 per row, and in the metadata the keys and origins. Reading the headers tells what is
there, so 10,000 rows are known in milliseconds and a row is read when it is asked for. A damaged
shard is deleted whole; its rows are then missing and made again.
"""

import hashlib
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from konomi.errors import FileFormatError, RunError
from konomi.storage.atomic import explained, sweep_temporaries
from konomi.storage.tensor_file import read_header, read_tensors, tensor_bytes, write_tensors

Row = Mapping[str, Tensor]

_LAYOUT = "konomi cache 1"
_CHECKS = "crc32"
_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 256
_SHARD_SECONDS = 30.0
"""An interrupted build loses at most this much work."""
_VERIFY_BYTES = 512 << 20
"""Rows up to this size are checked before training; beyond, each row when it is first read."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cache is."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know about a cache; work goes on."""

    message: str


def digest(*parts: object) -> str:
    """32 hexadecimal digits of anything with a stable text form: keys, origins, folder names."""
    return hashlib.blake2b(
        "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=16
    ).hexdigest()


class ShardStore:
    """Rows under keys. With a folder they are published in shards; without, they stay in memory.

    An origin says where a row comes from, whatever its content: a missing key whose origin is
    known is stale.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._origins: dict[str, str] = {}
        self._opened: dict[Path, tuple[dict[str, Tensor], list[int]]] = {}
        """Mapped tensors and checksums of a shard."""
        self._verified: set[str] = set()
        self._pending: dict[str, dict[str, tuple[str, dict[str, Tensor]]]] = {}
        """Rows not yet published: by signature, key -> (origin, row)."""
        self._published = time.monotonic()

    def __contains__(self, key: object) -> bool:
        return key in self._places or key in self._memory

    def knows_origin(self, origin: str) -> bool:
        """Whether there is a row from that origin, under whatever key."""
        return self._origins.get(origin) in self

    def open(self) -> Iterator[Notice]:
        """Read what the folder holds, from headers alone. Damaged shards are deleted, with a
        notice each.
        """
        if self.folder is None or not self.folder.exists():
            return
        sweep_temporaries(self.folder)
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                keys, origins = _read_index(path)
            except FileFormatError as error:
                yield self._drop(path, str(error))
                continue
            self._places.update((key, (path, row)) for row, key in enumerate(keys))
            self._origins.update(zip(origins, keys))

    def verify(self, keys: Iterable[str]) -> Iterator[Notice]:
        """Check these keys' rows against their checksums, up to a bound. Damaged shards go, with a
        notice each.
        """
        budget = _VERIFY_BYTES
        for key in keys:
            place = self._places.get(key)
            if place is None or key in self._verified:
                continue
            try:
                row = self._checked_row(key, *place)
            except FileFormatError as error:
                yield self._drop(place[0], str(error))
                continue
            budget -= sum(tensor.nbytes for tensor in row.values())
            if budget < 0:
                return

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of a row: views, not to be written to. Raises KeyError for an unknown key,
        RunError for a damaged row.
        """
        row = self._memory.get(key)
        if row is not None:
            return row
        path, number = self._places[key]
        if key in self._verified:
            return {name: tensor[number] for name, tensor in self._shard(path)[0].items()}
        try:
            return self._checked_row(key, path, number)
        except FileFormatError as error:
            self._drop(path, "")
            raise RunError(
                f"{error} The damaged cache file has been removed: start again, it is then rebuilt."
            ) from error

    def put(self, key: str, origin: str, row: Row) -> None:
        """Keep a row; rows become durable in groups, at the latest with `flush`. Raises RunError
        for a full disk.
        """
        own = {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in row.items()
        }
        self._memory[key] = own
        self._origins[origin] = key
        if self.folder is None:
            return
        signature = str([(name, own[name].dtype, tuple(own[name].shape)) for name in sorted(own)])
        group = self._pending.setdefault(signature, {})
        group[key] = origin, own
        size = len(group) * sum(tensor.nbytes for tensor in own.values())
        if len(group) >= _SHARD_ROWS or size >= _SHARD_BYTES:
            self._publish(signature)
        elif time.monotonic() - self._published > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make every row durable. Raises RunError for a full, read-only or vanished disk."""
        for signature in list(self._pending):
            self._publish(signature)

    def _publish(self, signature: str) -> None:
        assert self.folder is not None
        group = self._pending.pop(signature)
        keys = list(group)
        rows = [row for _, row in group.values()]
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        tensors[_CHECKS] = torch.tensor([_checksum(row) for row in rows], dtype=torch.int64)
        metadata = {
            "layout": _LAYOUT,
            "keys": " ".join(keys),
            "origins": " ".join(origin for origin, _ in group.values()),
        }
        path = self.folder / f"{digest(*keys)}.safetensors"
        try:
            write_tensors(path, tensors, metadata)
        except RunError as error:
            raise RunError(
                f"{error} Caches lie where data.cache.folder says; with 'memory' instead of 'disk' "
                "they need none."
            ) from error
        for number, key in enumerate(keys):
            self._places[key] = path, number
            self._verified.add(key)
            del self._memory[key]
        self._published = time.monotonic()

    def _shard(self, path: Path) -> tuple[dict[str, Tensor], list[int]]:
        shard = self._opened.get(path)
        if shard is None:
            tensors = read_tensors(path)
            shard = self._opened[path] = tensors, tensors.pop(_CHECKS).tolist()
        return shard

    def _checked_row(self, key: str, path: Path, number: int) -> dict[str, Tensor]:
        tensors, checks = self._shard(path)
        row = {name: tensor[number] for name, tensor in tensors.items()}
        if checks[number] != _checksum(row):
            raise FileFormatError(f"{path}: row {number} does not match its checksum.")
        self._verified.add(key)
        return row

    def _drop(self, path: Path, reason: str) -> Notice:
        with explained(path):
            path.unlink(missing_ok=True)
        self._opened.pop(path, None)
        gone = [key for key, place in self._places.items() if place[0] == path]
        for key in gone:
            del self._places[key]
            self._verified.discard(key)
        return Notice(f"A damaged cache file was removed and its content is made again. {reason}")


def _checksum(row: Row) -> int:
    value = 0
    for name in sorted(row):
        tensor = row[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor_bytes(tensor), value)
    return value


def _read_index(path: Path) -> tuple[list[str], list[str]]:
    """Keys and origins of a shard, from its header. Raises FileFormatError."""
    header = read_header(path)
    keys, origins = (
        header.metadata.get("keys", "").split(),
        header.metadata.get("origins", "").split(),
    )
    if header.metadata.get("layout") != _LAYOUT or len(keys) != len(origins):
        raise FileFormatError(f"{path}: not a cache file of this version.")
    if path.stem != digest(*keys):
        raise FileFormatError(f"{path}: the list of keys is damaged.")
    checks = header.tensors.get(_CHECKS)
    if checks is None or checks.dtype != "I64" or checks.shape != (len(keys),):
        raise FileFormatError(f"{path}: the checksums are missing.")
    if any(info.shape[:1] != (len(keys),) for info in header.tensors.values()):
        raise FileFormatError(f"{path}: tensors and keys differ in number.")
    return keys, origins

"""Content hashes: of files, of parts of files as other tools name models, and of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHORT_HASH_START = 0x100000
SHORT_HASH_LENGTH = 0x10000


def sha256_file(path: Path | str, *, start: int = 0) -> str:
    """SHA-256 of a file from byte `start` on, as 64 hexadecimal digits."""
    with Path(path).open("rb", buffering=0) as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(path: Path | str) -> str:
    """The 8 digits by which the first web UI and sd-scripts name a checkpoint: SHA-256 of 64 KiB
    from byte 0x100000.
    """
    with Path(path).open("rb") as file:
        file.seek(SHORT_HASH_START)
        return hashlib.sha256(file.read(SHORT_HASH_LENGTH)).hexdigest()[:8]


def texts_hash(texts: Iterable[str]) -> str:
    """SHA-256 over texts, each on a line."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names; the same on every
    device.
    """
    from konomi.storage.tensor_file import tensor_bytes

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def sampled_hash(tensors: Mapping[str, Tensor], count: int = 256) -> str:
    """SHA-256 over names, types, shapes and the first `count` values of each tensor: cheap, and
    tells models apart.
    """
    return tensors_hash(
        {
            f"{name} {tuple(tensor.shape)}": tensor.reshape(-1)[:count]
            for name, tensor in tensors.items()
        }
    )

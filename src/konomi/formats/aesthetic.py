"""Aesthetic embeddings (Gallego 2022): the mean of the CLIP features of pictures somebody likes.

A1111's extension keeps a bare tensor [1, P] or [P] in a `.pt`; a safetensors file holds it under a
name, with metadata. Shapes: P width of the space that CLIP shares between pictures and texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from konomi.errors import FileFormatError
from konomi.formats.source import Source, fault, open_source
from konomi.formats.writer import check_ending
from konomi.storage.pickles import write_pickle
from konomi.storage.tensor_file import check_finite, is_finite, write_tensors

KIND = "aesthetic embedding"
TENSOR = "aesthetic_embedding"
"""Its name in a safetensors file."""
CLIP = "konomi.clip"
"""Metadata: the CLIP whose features they are."""
IMAGES = "konomi.images"
"""Metadata: how many pictures are in the mean."""
SUFFIXES = (".safetensors", ".pt")
_WIDEST = 8192


@dataclass(frozen=True, slots=True)
class AestheticEmbedding:
    """A direction in CLIP's space."""

    vector_P: Tensor
    """Float32, of any length: some files hold the mean of unit vectors, some of others."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def recognise(source: Source) -> bool:
    """A table of this one name, or a pickle that is one vector."""
    if isinstance(source.value, Tensor):
        return is_vector(tuple(source.value.shape))
    return set(source.shapes) == {TENSOR}


def is_vector(shape: tuple[int, ...]) -> bool:
    """[P] or [1, P]."""
    return len(shape) in (1, 2) and shape[:-1] in ((), (1,)) and 16 <= shape[-1] <= _WIDEST


def read_aesthetic(path: Path | str) -> AestheticEmbedding:
    """Raises FileFormatError saying what the file is instead, or which number is none."""
    path = Path(path)
    source = open_source(path)
    if not recognise(source):
        raise FileFormatError(
            f"{path}: is no aesthetic embedding (a tensor [P] or [1, P] in .pt, or "
            f"{TENSOR} in .safetensors). konomi train aesthetic --images DIR makes one."
        )
    pickled = isinstance(source.value, Tensor)
    tensor = source.value if pickled else source.tensors()[TENSOR]
    name = "its tensor" if pickled else TENSOR
    if not is_vector(tuple(tensor.shape)) or not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise fault(path, name, f"is {kind} {list(tensor.shape)}; an aesthetic embedding is [1, P]")
    if not is_finite(tensor):
        raise fault(path, name, "holds NaN or infinity; the file is broken. Use another save of it")
    vector_P = tensor.detach().reshape(-1).float()
    if not bool(vector_P.any()):
        raise fault(path, name, "is zero, which is no direction. Make it anew")
    return AestheticEmbedding(vector_P, dict(source.metadata))


def write_aesthetic(embedding: AestheticEmbedding, path: Path | str) -> None:
    """`.pt` as A1111 reads it, [1, P]; `.safetensors` with metadata.

    Raises FileFormatError for another ending and for NaN, RunError for the disk's refusals.
    """
    path = Path(path)
    check_ending(path, SUFFIXES, "an aesthetic embedding")
    tensor = embedding.vector_P.detach().float().cpu().reshape(1, -1).contiguous()
    check_finite({TENSOR: tensor}, str(path))
    if path.suffix.lower() == ".pt":
        write_pickle(path, tensor)
    else:
        write_tensors(path, {TENSOR: tensor}, dict(embedding.metadata))

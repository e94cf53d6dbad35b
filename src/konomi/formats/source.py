"""A file opened far enough to see what it holds: names and shapes, but no numbers where the format allows that."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.errors import FileFormatError
from konomi.formats.embedding_png import read_png_embedding
from konomi.storage.pickles import read_pickle
from konomi.storage.sniff import FileKind, refuse, sniff
from konomi.storage.tensor_file import read_header, read_tensors

DIFFUSERS_LORA_NAME = "pytorch_lora_weights.safetensors"
PEFT_CONFIG_NAME = "adapter_config.json"
CUSTOM_DIFFUSION_NAMES = ("pytorch_custom_diffusion_weights.safetensors", "pytorch_custom_diffusion_weights.bin")
_STANDARD_NAMES = (DIFFUSERS_LORA_NAME, *CUSTOM_DIFFUSION_NAMES)


@dataclass(frozen=True, slots=True)
class Source:
    """What recognisers look at."""

    path: Path
    kind: FileKind
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor name -> shape, where the file is a flat table of tensors."""
    metadata: dict[str, str] = field(default_factory=dict)
    value: Any = None
    """The content of a pickled file."""

    @property
    def name(self) -> str:
        """File stem; for diffusers' standard file names the folder's name, which says more."""
        if self.path.name in _STANDARD_NAMES:
            return self.path.resolve().parent.name
        return self.path.name if self.path.is_dir() else self.path.stem

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a flat file."""
        if self.kind is FileKind.SAFETENSORS:
            return read_tensors(self.path)
        return flat_tensors(self.value)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An adapter as read, and what of the file has no place in it."""

    adapter: Adapter
    unknown: tuple[str, ...] = ()
    """Tensor or layer names that konomi does not know."""


def open_source(path: Path | str) -> Source:
    """Look into a safetensors file, a PyTorch file, a picture that carries an embedding, or a folder.

    Raises FileFormatError saying what else it is.
    """
    path = Path(path)
    kind = sniff(path)
    if kind is FileKind.FOLDER:
        inside = next((path / name for name in _STANDARD_NAMES if (path / name).is_file()), None)
        return Source(path, kind) if inside is None else open_source(inside)
    if kind is FileKind.SAFETENSORS:
        header = read_header(path)
        return Source(path, kind, {name: info.shape for name, info in header.tensors.items()}, header.metadata)
    if kind in (FileKind.TORCH_ZIP, FileKind.TORCH_LEGACY):
        value = read_pickle(path)
        return Source(path, kind, {name: tuple(t.shape) for name, t in flat_tensors(value).items()}, {}, value)
    if kind is FileKind.PNG and (table := read_png_embedding(path)) is not None:
        return Source(path, kind, value=table)
    raise refuse(path, kind, "a model or adapter file")


def flat_tensors(value: Any) -> dict[str, Tensor]:
    """The table of tensors in a pickled file, if it is one (perhaps under "state_dict"); otherwise {}."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        return {}
    return {name: item.detach() for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}


def fault(path: Path, tensor: str, what: str) -> FileFormatError:
    """The error for one tensor of a file."""
    return FileFormatError(f"{path}: {tensor} {what}.")

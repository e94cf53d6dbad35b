"""A file opened far enough to see what it holds: names and shapes, but no numbers where the format
allows that.
"""

from __future__ import annotations

from collections.abc import Mapping
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
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TENSOR_KINDS = (FileKind.SAFETENSORS, FileKind.TORCH_ZIP, FileKind.TORCH_LEGACY)
CUSTOM_DIFFUSION_NAMES = (
    "pytorch_custom_diffusion_weights.safetensors",
    "pytorch_custom_diffusion_weights.bin",
)
_DEEPEST = 8
"""Tables within tables that are told apart."""
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

    @property
    def names(self) -> list[str]:
        """Everything in the file that has a name: tensors, and in a pickle plain values too
        (nested: `outer.inner`).

        Nothing for a folder, whose files have their own sources.
        """
        value = self.value
        if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
            beside = {key: item for key, item in value.items() if key != "state_dict"}
            return leaf_names(value["state_dict"]) + leaf_names(beside)
        return leaf_names(value) if value is not None else list(self.shapes)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a flat file."""
        if self.kind is FileKind.SAFETENSORS:
            return read_tensors(self.path)
        return flat_tensors(self.value)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An adapter as read, and what of the file has no place in it.

    A reader says what it used; `accounting` names everything else, so that none can forget a
    tensor.
    """

    adapter: Adapter
    unknown: tuple[str, ...] = ()
    """Tensor or layer names that konomi does not know; a file with such is not loaded."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Name of a tensor or field that is not used -> why; the rest of the file is loaded."""
    notes: tuple[str, ...] = ()
    """Sentences on what had to be assumed."""
    used: frozenset[str] = frozenset()
    """Names, as in `Source.names`, of what went into the adapter or says nothing that could change
    it."""


def open_source(path: Path | str, *, alone: bool = False) -> Source:
    """Look into a safetensors file, a PyTorch file, a picture that carries an embedding, or a
    folder.

    PEFT's weights stand for their folder, unless they are wanted `alone`: the settings beside them
    decide their scale. Raises FileFormatError saying what else it is.
    """
    path = Path(path)
    kind = sniff(path)
    settings = path.parent / PEFT_CONFIG_NAME
    if not alone and path.name in PEFT_WEIGHTS and settings.is_file() and kind in _TENSOR_KINDS:
        return Source(path.parent, FileKind.FOLDER)
    if kind is FileKind.FOLDER:
        names = (
            _STANDARD_NAMES
            if (path / PEFT_CONFIG_NAME).exists()
            else (*_STANDARD_NAMES, *PEFT_WEIGHTS)
        )
        inside = next((path / name for name in names if (path / name).is_file()), None)
        return Source(path, kind) if inside is None else open_source(inside)
    if kind is FileKind.SAFETENSORS:
        header = read_header(path)
        return Source(
            path, kind, {name: info.shape for name, info in header.tensors.items()}, header.metadata
        )
    if kind in (FileKind.TORCH_ZIP, FileKind.TORCH_LEGACY):
        value = read_pickle(path)
        return Source(
            path, kind, {name: tuple(t.shape) for name, t in flat_tensors(value).items()}, {}, value
        )
    if kind is FileKind.PNG and (table := read_png_embedding(path)) is not None:
        return Source(path, kind, value=table)
    raise refuse(path, kind, "a model or adapter file")


def leaf_names(value: Any) -> list[str]:
    """Names of what is neither table nor list of such, each the keys (or places) that lead to it,
    joined by dots.

    A table that holds itself, or one that is held many times, is gone through once; what lies very
    deep is one name.
    """
    names: list[str] = []
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        name, item, depth = waiting.pop()
        if depth < _DEEPEST and _is_container(item):
            if id(item) in seen:
                continue
            seen.add(id(item))
            inner = item.items() if isinstance(item, dict) else enumerate(item)
            waiting += [
                (f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in inner
            ]
        elif name:
            names.append(name)
    return names[::-1]


def _is_container(item: object) -> bool:
    if isinstance(item, dict):
        return True
    return isinstance(item, list | tuple) and any(isinstance(part, Tensor | dict) for part in item)


def flat_tensors(value: Any) -> dict[str, Tensor]:
    """The table of tensors in a pickled file, if it is one (perhaps under "state_dict"); otherwise
    {}.
    """
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        return {}
    return {
        name: item.detach()
        for name, item in value.items()
        if isinstance(name, str) and isinstance(item, Tensor)
    }


def fault(path: Path, tensor: str, what: str) -> FileFormatError:
    """The error for one tensor of a file."""
    return FileFormatError(f"{path}: {tensor} {what}.")

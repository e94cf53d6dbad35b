"""Model files of any kind as a table of named tensors: the header first, the numbers when asked
for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError, ModelError
from konomi.families.family import Shapes
from konomi.storage.pickles import read_pickle
from konomi.storage.sniff import FileKind, refuse, sniff
from konomi.storage.tensor_file import read_header, read_tensors

_MAX_JSON = 64 << 20


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An opened file. safetensors are mapped and read by name; a pickle is held."""

    path: Path
    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, Tensor] | None = None
    global_step: int | None = None
    """What a training tool wrote into a `.ckpt`."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        if self.held is not None:
            return {name: self.held[name] for name in names}
        return read_tensors(self.path, names)


def open_tensor_file(path: Path) -> TensorFile:
    """Raises FileFormatError saying what the file is instead, or how it is damaged."""
    kind = sniff(path)
    if kind is FileKind.SAFETENSORS:
        header = read_header(path)
        shapes = {name: info.shape for name, info in header.tensors.items()}
        return TensorFile(path, shapes, header.metadata)
    if kind not in (FileKind.TORCH_ZIP, FileKind.TORCH_LEGACY):
        raise refuse(path, kind, "a model")
    content: Any = read_pickle(path)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: holds a {type(content).__name__}, not a table of tensors.")
    step = content.get("global_step")
    inner = content.get("state_dict", content)
    if not isinstance(inner, dict):
        raise FileFormatError(
            f"{path}: its state_dict is a {type(inner).__name__}, not a table of tensors."
        )
    held = {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
    return TensorFile(path, shapes, held=held, global_step=step if isinstance(step, int) else None)


def open_component(folder: Path, stems: tuple[str, ...]) -> list[TensorFile]:
    """The weight files of one component of a diffusers folder; several where they are sharded.

    safetensors before pickles, full precision before `.fp16.` variants. Raises ModelError if there
    are none.
    """
    for ending in (".safetensors", ".bin"):
        for variant in ("", ".fp16", ".bf16", ".non_ema", ".ema"):
            for stem in stems:
                path = folder / f"{stem}{variant}{ending}"
                if path.is_file():
                    return [open_tensor_file(path)]
                index = folder / f"{stem}{ending}.index{variant}.json"
                if index.is_file():
                    return [open_tensor_file(shard) for shard in _shards(index)]
    raise ModelError(f"{folder}: holds no weights ({stems[0]}.safetensors or .bin).")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict):
        raise ModelError(f"{index}: has no weight_map.")
    names = sorted({str(name) for name in table.values()})
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{index}: names a file outside its folder.")
    return [index.parent / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A config file. Nothing that it names is imported. Raises ModelError if it is absent or
    damaged.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelError(f"{path}: too large for a config.")
        content = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(
            f"{path}: is missing, so this is not a complete diffusers folder."
        ) from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: the config is damaged ({error}).") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: the config is not a table of settings.")
    return content

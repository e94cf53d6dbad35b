"""`inspect` and `convert`: what a file is, and the same thing in another format."""

from pathlib import Path

import torch

from konomi.errors import RecipeError
from konomi.formats import TARGETS, Target, inspect_file, read_adapter, write_adapter
from konomi.formats.report import FileReport
from konomi.models.load import load_base
from konomi.models.precision import PRECISIONS
from konomi.models.save import save_folder, save_single_file
from konomi.storage.atomic import explained

_MODEL_KINDS = ("checkpoint", "model", "base")


def inspect(path: str | Path) -> FileReport:
    """What a model or adapter file is. Nothing in it is executed. Raises FileFormatError."""
    return inspect_file(Path(path))


def convert(source: str | Path, target: str | Path, *, to: Target | None = None, precision: str | None = None) -> Path:
    """Write `source` in another format. Adapters: kohya (= webui), diffusers, peft. Models: diffusers (a folder), webui
    (one file); without `to`, a target that ends in .safetensors is one file, any other a folder.

    Raises RecipeError for a format that does not exist for this kind of file.
    """
    source, target = Path(source), Path(target)
    if to is not None and to not in TARGETS:
        raise RecipeError(f"--to is {to!r}; choose one of {', '.join(TARGETS)}.")
    with explained(target):
        if target.exists() and source.resolve() == target.resolve():
            raise RecipeError(f"{target}: is the source itself. Name another target.")
        if target.exists():
            raise RecipeError(f"{target}: exists already. Remove it or choose another name.")
    dtype = None if precision is None else PRECISIONS[precision]
    if _is_model(source):
        return _convert_model(source, target, to, dtype)
    adapter = read_adapter(source)
    write_adapter(adapter, target, to=to, dtype=dtype)
    return target


def _is_model(source: Path) -> bool:
    if (source / "model_index.json").is_file():
        return True
    return inspect_file(source).kind in _MODEL_KINDS


def _convert_model(source: Path, target: Path, to: Target | None, dtype: torch.dtype | None) -> Path:
    if to in ("kohya", "peft"):
        raise RecipeError(f"--to {to} is for adapters; {source.name} is a whole model. Use diffusers or webui.")
    base = load_base(source)
    if to == "diffusers" or (to is None and target.suffix != ".safetensors"):
        save_folder(base, target, dtype=dtype or torch.float32)
    else:
        save_single_file(base, target, dtype=dtype or torch.float32)
    return target

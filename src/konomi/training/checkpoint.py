"""States to resume from: `checkpoints/step-000100/` with safetensors and JSON, never a pickle.

A checkpoint is written beside its place, made durable, and renamed; its manifest holds the sha256 of every file. The
newest whose checksums hold is used, and an older one is deleted only after a newer one is durable.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.errors import FileFormatError, RunError
from konomi.storage.atomic import check_free_space, explained, temporary_beside, write_folder, write_text
from konomi.storage.hashing import sha256_file
from konomi.storage.tensor_file import read_tensors, write_tensors
from konomi.training.trainer import TrainState

REQUIRED = ("weights.safetensors", "optimizer.safetensors", "state.json")
"""What every checkpoint's manifest names; without one of them it is none."""

LAYOUT = 1
"""Version of this layout; a reader refuses newer ones."""
MARGIN = 16 * 2**20
"""Bytes of free space asked for beyond the state itself, so that logs and manifests fit as well."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state read back, with what was noted about the run it belongs to."""

    path: Path
    state: TrainState
    run: dict[str, Any]
    """The identity of the run: recipe, data, base, versions. See `training.identity`."""


def write_checkpoint(folder: Path, state: TrainState, run: dict[str, Any], *, keep: int) -> Path:
    """Publish `folder/step-NNNNNN`, then delete the oldest beyond `keep`. Raises RunError for the disk."""
    final = folder / f"step-{state.numbers['step']:06d}"
    check_free_space(folder, sum(_bytes(tensors) for tensors in state.tensors.values()) + MARGIN)
    with write_folder(final, replace=True) as temporary:
        for name, tensors in state.tensors.items():
            write_tensors(temporary / f"{name}.safetensors", tensors)
        write_text(
            temporary / "state.json", json.dumps({"layout": LAYOUT, "numbers": state.numbers, "run": run}, indent=1)
        )
        sums = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        write_text(temporary / "manifest.json", json.dumps(sums, indent=1))
    for old in checkpoint_paths(folder)[: -max(keep, 1)]:
        _delete(old)
    return final


def checkpoint_paths(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit())


def newest_good(folder: Path, *, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is whole; `warn` hears of each damaged one passed over.

    Raises RunError if there is none: a run that has lost its state never starts again at step 0 by itself.
    """
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except FileFormatError as damage:
            warn(f"{damage} Going back to the one before.")
    if not paths:
        raise RunError(f"{folder}: holds no checkpoint, so there is nothing to resume. Start the run anew with train.")
    raise RunError(
        f"{folder}: all {len(paths)} checkpoints are damaged, so the run cannot be resumed. Start it anew with another "
        "output folder; a saved result file can be gone on from (method.start)."
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises FileFormatError naming the file that is missing or not as written."""
    try:
        sums = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if sha256_file(path / name) != expected:
                raise FileFormatError(f"{path / name}: the checksum does not fit; the file is damaged.")
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        layout, numbers, run = content["layout"], content["numbers"], content["run"]
    except FileNotFoundError as missing:
        raise FileFormatError(f"{missing.filename}: the file is missing from this checkpoint.") from missing
    except OSError as unreadable:
        raise FileFormatError(f"{unreadable.filename}: cannot be read ({unreadable.strerror}).") from unreadable
    except (ValueError, AttributeError, KeyError, TypeError) as unreadable:
        raise FileFormatError(f"{path}: manifest.json or state.json is damaged.") from unreadable
    if layout > LAYOUT:
        raise FileFormatError(f"{path}: was written by a newer konomi. Update konomi to resume it.")
    if absent := [name for name in REQUIRED if name not in sums]:
        raise FileFormatError(f"{path}: manifest.json is damaged; {absent[0]} is not in it.")
    tensors = {Path(name).stem: read_tensors(path / name) for name in sums if name.endswith(".safetensors")}
    return Checkpoint(path, TrainState(tensors, numbers), run)


def _delete(path: Path) -> None:
    # Renamed first: a kill in the middle must not leave half a checkpoint under a name that counts.
    with explained(path):
        aside = temporary_beside(path)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

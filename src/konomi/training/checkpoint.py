"""States to resume from: `checkpoints/step-000100/` with safetensors and JSON, never a pickle.

A checkpoint is written beside its place, made durable, and renamed; its manifest holds the sha256
of every file. The newest whose checksums hold is used, and an older one is deleted only after a
newer one is durable.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError, RunError
from konomi.storage.atomic import (
    check_free_space,
    explained,
    temporary_beside,
    write_folder,
    write_text,
)
from konomi.storage.hashing import sha256_file
from konomi.storage.regular import check_regular, read_small
from konomi.storage.tensor_file import read_tensors, write_tensors
from konomi.training.trainer import TrainState

REQUIRED = ("weights.safetensors", "optimizer.safetensors", "state.json")
"""What every checkpoint's manifest names; without one of them it is none."""

LAYOUT = 1
"""Version of this layout; a reader refuses newer ones."""
MAX_JSON = 64 * 2**20
"""Bytes of manifest.json or state.json; konomi's own have some thousand."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.(safetensors|json)")
MARGIN = 16 * 2**20
"""Bytes of free space asked for beyond the state itself, so that logs and manifests fit as well."""


class NewerLayoutError(FileFormatError):
    """A checkpoint that only a newer konomi can read."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state read back, with what was noted about the run it belongs to."""

    path: Path
    state: TrainState
    run: dict[str, Any]
    """The identity of the run: recipe, data, base, versions. See `training.identity`."""


def write_checkpoint(folder: Path, state: TrainState, run: dict[str, Any], *, keep: int) -> Path:
    """Publish `folder/step-NNNNNN`, then delete the oldest beyond `keep`. Raises RunError for the
    disk.
    """
    final = folder / f"step-{state.numbers['step']:06d}"
    check_free_space(folder, sum(_bytes(tensors) for tensors in state.tensors.values()) + MARGIN)
    with write_folder(final, replace=True) as temporary:
        for name, tensors in state.tensors.items():
            write_tensors(temporary / f"{name}.safetensors", tensors)
        write_text(
            temporary / "state.json",
            json.dumps({"layout": LAYOUT, "numbers": state.numbers, "run": run}, indent=1),
        )
        sums = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        write_text(temporary / "manifest.json", json.dumps(sums, indent=1))
    _delete_superseded(folder, final, keep)
    return final


def checkpoint_paths(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    return sorted(
        (
            path
            for path in folder.glob("step-*")
            if path.is_dir() and re.fullmatch(r"[0-9]{1,18}", path.name[5:])
        ),
        key=_step_of,
    )


def last_step(folder: Path) -> int:
    """Of the newest published checkpoint; 0 where there is none. Opens nothing."""
    return max(map(_step_of, checkpoint_paths(folder)), default=0)


def _step_of(path: Path) -> int:
    return int(path.name[5:])


def _delete_superseded(folder: Path, written: Path, keep: int) -> None:
    """Leave `keep` checkpoints, the one just written among them. Those of later steps were passed
    over as damaged when the run was resumed: they go first, so that they never outlive a good one.
    """
    for later in checkpoint_paths(folder):
        if _step_of(later) > _step_of(written):
            _delete(later)
    delete_earlier(written, keep)


def delete_earlier(good: Path, keep: int) -> None:
    """Leave `keep` checkpoints up to `good`, which is one of them. A run that was cut off before
    it did so does it when it is gone on with.
    """
    earlier = [path for path in checkpoint_paths(good.parent) if _step_of(path) < _step_of(good)]
    for old in earlier[: max(len(earlier) - max(keep, 1) + 1, 0)]:
        _delete(old)


def newest_good(
    folder: Path, *, warn: Callable[[str], None], most_bytes: float = math.inf
) -> Checkpoint:
    """The newest checkpoint that is whole; `warn` hears of each damaged one passed over.
    `most_bytes`: how large a file of tensors may be.

    Raises RunError if there is none: a run that has lost its state never starts again at step 0 by
    itself.
    """
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path, most_bytes=most_bytes)
        except NewerLayoutError as newer:
            # Not damage: going back to an older one, and deleting this in time, would lose steps.
            raise RunError(str(newer)) from newer
        except FileFormatError as damage:
            warn(f"{damage} Going back to the one before.")
    if not paths:
        raise RunError(
            f"{folder}: holds no checkpoint, so there is nothing to resume. Start the run anew "
            "with train."
        )
    raise RunError(
        f"{folder}: all {len(paths)} checkpoints are damaged, so the run cannot be resumed. Start "
        "again with another output folder; method.start can continue from a saved result file."
    )


def read_checkpoint(path: Path, *, most_bytes: float = math.inf) -> Checkpoint:
    """Opens nothing but regular files of plain names inside the folder, of a size that can be,
    whatever is named.

    Raises FileFormatError naming the file that is missing or not as written.
    """
    sums = _checked_sums(path, _table(path / "manifest.json"))
    for name in sums:
        size = check_regular(path / name, "file of this checkpoint")
        # Known before it is read: reading a file that is nothing but a hole takes as long as one
        # with data.
        if size > (MAX_JSON if name.endswith(".json") else most_bytes):
            raise FileFormatError(
                f"{path / name}: is {size} bytes long, more than any state of this run could be."
            )
    for name, expected in sums.items():
        try:
            right = sha256_file(path / name) == expected
        except OSError as unreadable:
            raise FileFormatError(
                f"{path / name}: cannot be read ({unreadable.strerror})."
            ) from unreadable
        if not right:
            raise FileFormatError(f"{path / name}: the checksum does not fit; the file is damaged.")
    content = _table(path / "state.json")
    layout, numbers, run = (content.get(name) for name in ("layout", "numbers", "run"))
    if type(layout) is int and layout > LAYOUT:
        raise NewerLayoutError(
            f"{path}: was written by a newer konomi. Update konomi to resume it."
        )
    if absent := [name for name in REQUIRED if name not in sums]:
        raise FileFormatError(f"{path}: manifest.json is damaged; {absent[0]} is not in it.")
    if type(layout) is not int or not isinstance(numbers, dict) or not isinstance(run, dict):
        raise FileFormatError(
            f"{path / 'state.json'}: is damaged (it does not say how far the run is)."
        )
    if numbers.get("step") != _step_of(path) or type(numbers["step"]) is not int:
        raise FileFormatError(
            f"{path / 'state.json'}: is damaged (it is of another step than the folder's name)."
        )
    tensors = {
        Path(name).stem: read_tensors(path / name) for name in sums if name.endswith(".safetensors")
    }
    return Checkpoint(path, TrainState(tensors, numbers), run)


def _checked_sums(path: Path, sums: dict[str, Any]) -> dict[str, str]:
    """The manifest's table, if it names files as a checkpoint has them and nothing else."""
    for name, expected in sums.items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(expected, str):
            raise FileFormatError(
                f"{path / 'manifest.json'}: names {name[:80]!r}, which is not a file of a "
                "checkpoint. It is damaged or tampered with."
            )
    return sums


def _table(file: Path) -> dict[str, Any]:
    """The JSON object a small file holds. Raises FileFormatError."""
    try:
        content = parse_json(read_small(file, MAX_JSON, "file of this checkpoint"))
    except ValueError as unreadable:
        raise FileFormatError(f"{file}: is damaged (not readable as JSON).") from unreadable
    if not isinstance(content, dict):
        raise FileFormatError(f"{file}: is damaged (not a table).")
    return content


def _delete(path: Path) -> None:
    # Renamed first: a kill in the middle must not leave half a checkpoint under a name that counts.
    with explained(path):
        aside = temporary_beside(path)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

"""What is compared: saved files at strengths, and how one is put on the base for drawing."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach, check_fits
from konomi.errors import KonomiError, ModelError
from konomi.formats.adapter_file import format_of, read_adapter
from konomi.formats.source import open_source
from konomi.formats.writer import content_of
from konomi.generation.adapter_request import FOLDER_MARKS, tag_kind
from konomi.generation.embedding_request import named_as_trained, named_by_file
from konomi.generation.request import UsedAdapter
from konomi.models.base import BaseModel
from konomi.models.load import load_base
from konomi.storage.hashing import sha256_file

BASE = "base"
"""The untouched base's id, and its method."""
_RESULT_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".png")


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file, or the folder of an adapter or model, before it is read."""

    path: Path
    label: str
    """For people: `step 400`, or the file's name."""
    method: str = ""
    """Empty where it is not known."""
    run: Path | None = None
    step: int = 0
    """0 where it is not known."""
    failure: str = ""
    """Why there is nothing to measure: one line. The file may not exist."""


@dataclass(frozen=True, slots=True)
class CandidateFile:
    """A file at a strength: one candidate of a comparison."""

    id: str
    file: SavedFile
    weight: float

    @property
    def label(self) -> str:
        weight = "" if self.weight == 1 else f" at weight {self.weight:g}"
        return f"{self.file.label}{weight}"


def saved_files(run: Path, name: str, *, method: str, steps: dict[str, int]) -> list[SavedFile]:
    """Everything that a run saved, by step: `NAME-step00000500`, `NAME-000010`, `NAME`.

    `steps`: what is known of epochs: `NAME-000010` -> step, and `NAME` -> the last step.
    """
    pattern = re.compile(rf"{re.escape(name)}(?:-step(\d{{8}})|-(\d{{6}}))?")
    found = []
    for path in sorted(run.iterdir()):
        is_result = path.suffix in _RESULT_SUFFIXES if path.is_file() else _is_result(path)
        stem = path.stem if path.is_file() else path.name
        match = pattern.fullmatch(stem) if is_result else None
        if match is None:
            continue
        step = int(match[1]) if match[1] else steps.get(stem, 0)
        label = f"step {step}" if step else stem
        found.append(SavedFile(path, label, method, run, step))
    return sorted(found, key=lambda file: (file.step, file.path.name))


def candidates(files: Sequence[SavedFile], weights: Sequence[float]) -> tuple[CandidateFile, ...]:
    """Each file at each weight, with ids that say what they are and are the same every time."""
    runs = {file.run for file in files}
    stems = [_stem(file, alone=len(runs) == 1) for file in files]
    seen: Counter[str] = Counter()
    found = []
    for file, stem in zip(files, stems, strict=True):
        seen[stem.casefold()] += 1
        unique = stem if seen[stem.casefold()] == 1 else f"{stem}-{seen[stem.casefold()]}"
        found += [CandidateFile(f"{unique}@{weight:g}", file, weight) for weight in weights]
    return tuple(found)


def content(path: Path) -> str:
    """A digest of a file, or of all files of a folder. Raises OSError."""
    state = path.stat()
    return _content(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _content(path: Path, size: int, changed: int) -> str:
    """For a file at several weights: a whole model takes seconds to read."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


@dataclass(frozen=True, slots=True)
class Opened:
    """A saved file that was read: an adapter, or a model by itself."""

    adapter: Adapter | None
    path: Path

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.adapter is None else self.adapter.notes

    @property
    def words(self) -> tuple[str, ...]:
        """Learned words that prompts may say."""
        known = () if self.adapter is None else tuple(self.adapter.embeddings)
        return tuple(word for word in known if not word.endswith("-neg"))

    @property
    def trigger(self) -> str:
        """What the file says that calls it."""
        if self.adapter is None:
            return ""
        own = [word for word in self.words if word != self.adapter.name]
        return self.adapter.metadata.get("modelspec.trigger_phrase", "") or next(
            iter([*own, *self.words]), ""
        )

    def used(self, weight: float) -> tuple[UsedAdapter, ...]:
        """What the picture's text says of it."""
        if self.adapter is None:
            return ()
        held = content_of(self.adapter)
        kind = "embedding" if held == "embedding" else tag_kind(held)
        hashed = self.adapter.metadata.get("sshs_model_hash", "")[:12]
        return (UsedAdapter(self.path.stem, weight, weight, hashed, kind),)


def is_whole_model(path: Path) -> bool:
    """Whether a file is no adapter. Raises FileFormatError where it is neither."""
    return format_of(open_source(path)) is None


def open_saved(path: Path) -> Opened:
    """Read an adapter; of a whole model only look what it is. Raises KonomiError."""
    if is_whole_model(path):
        load_base(path)
        return Opened(None, path)
    return Opened(named_by_file(named_as_trained(read_adapter(path)), path), path)


def check(opened: Opened, base: BaseModel, weight: float) -> None:
    """Raises ModelError where it cannot be drawn with. Changes nothing."""
    if opened.adapter is not None:
        check_fits(base, opened.adapter, Strengths(weight, weight))
        return
    _check_family(load_base(opened.path), base, opened)


def _check_family(model: BaseModel, base: BaseModel, opened: Opened) -> None:
    if model.family != base.family:
        raise ModelError(
            f"{opened.path}: is a model of {model.family}, and the base is one of {base.family}: "
            "they cannot be compared picture by picture."
        )


@contextmanager
def drawn_with(opened: Opened, base: BaseModel, weight: float) -> Iterator[BaseModel]:
    """Inside, what to draw with: the base with the adapter on it, or the model itself. A whole
    model at another weight than 1 is the base and so much of the difference.

    Raises ModelError, with the base as it was.
    """
    if opened.adapter is not None:
        with attach(base, [(opened.adapter, Strengths(weight, weight))]):
            yield base
        return
    model: Any = load_base(opened.path)
    _check_family(model, base, opened)
    model.place(base.device, base.dtype)
    if weight != 1:
        _mix(model, base, weight, str(opened.path))
    yield model


@torch.no_grad()
def _mix(model: BaseModel, base: BaseModel, weight: float, where: str) -> None:
    if model.process.prediction != base.process.prediction:
        raise ModelError(f"{where}: predicts otherwise than the base, so they cannot be mixed.")
    for part in (spec.part for spec in model.spec.parts):
        own, theirs = base.state(part), model.state(part)
        for name, tensor in theirs.items():
            if name not in own or own[name].shape != tensor.shape:
                raise ModelError(f"{where}: {part} {name} is of another size than the base's.")
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(own[name].float(), tensor.float(), weight))


def one_line(error: KonomiError) -> str:
    """The reason in a row."""
    return " ".join(str(error).split("\n"))


def _stem(file: SavedFile, *, alone: bool) -> str:
    if file.run is None:
        named = file.path.stem if file.path.suffix in _RESULT_SUFFIXES else file.path.name
    else:
        named = (file.method if alone and file.method else file.run.name) + (
            f"-step{file.step}" if file.step else ""
        )
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in named).strip(".-")
    stem = kept[:80] or "file"
    return f"{stem}-file" if stem == BASE else stem


def _is_result(path: Path) -> bool:
    marks = ("model_index.json", *FOLDER_MARKS)
    below = ("unet", "text_encoder")
    return any((path / mark).is_file() for mark in marks) or any(
        (path / part / "adapter_config.json").is_file() for part in below
    )

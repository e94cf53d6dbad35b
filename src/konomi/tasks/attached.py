"""Adapters that stay attached to a base while something is trained on top of them, and those that a
file says it was trained on top of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from konomi.adapters import hypernetwork
from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import check_fits
from konomi.adapters.kinds import tensors_of
from konomi.errors import ModelError, RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.formats.trained_for import AttachedFile, declared_attached
from konomi.generation.adapter_request import AdapterRequest, parse_add, strengths
from konomi.generation.embedding_request import named_as_trained, named_by_file
from konomi.generation.request import UsedAdapter
from konomi.generation.unused import trained_otherwise
from konomi.merging.provenance import model_hash
from konomi.models.attached import AttachedAdapters
from konomi.models.base import BaseModel
from konomi.storage.hashing import tensors_hash, texts_hash
from konomi.tasks.adapters_to_draw_with import used_adapter


@dataclass(frozen=True, slots=True)
class Attached:
    """What was put on a base for good."""

    files: tuple[AttachedFile, ...] = ()
    used: tuple[UsedAdapter, ...] = ()
    """For the settings that pictures carry."""
    beside: tuple[AttachedFile, ...] = ()
    """Those of which a model's file cannot hold all: words, networks, a negative branch."""
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        return ", ".join(file.flag for file in self.files)


def keep_attached(base: BaseModel, written: Sequence[str], setting: str = "adapters") -> Attached:
    """Put adapters, each `FILE` or `FILE:0.8`, on a base of which nothing is loaded yet, for as
    long as it is in use.

    Raises RecipeError where a file is missing, ModelError where one is for another base or two
    bring the same word, FileFormatError.
    """
    if not written:
        return Attached()
    requests = [parse_add(one, setting) for one in written]
    adapters = [_read(request) for request in requests]
    _check(base, list(zip(requests, adapters, strict=True)), setting)
    files = tuple(
        AttachedFile(r.path.name, model_hash(r.path), r.denoiser_weight, r.text_weight)
        for r in requests
    )
    pairs = [
        (adapter, strengths(request, adapter, base.block_of)[0])
        for request, adapter in zip(requests, adapters, strict=True)
    ]
    fingerprint = texts_hash(
        f"{one.sha256} {one.denoiser!r} {one.text!r} {_negative_hash(adapter)}"
        for one, adapter in zip(files, adapters, strict=True)
    )
    base.keep_attached(
        AttachedAdapters(tuple(pairs), tuple(one.name for one in files), fingerprint)
    )
    notes = [note for adapter in adapters for note in adapter.notes]
    for request, adapter in zip(requests, adapters, strict=True):
        notes += trained_otherwise(request.path.name, adapter, base)
        if request.denoiser_weight == 0 == request.text_weight:
            notes.append(f"{setting}: {request.path.name} at weight 0 changes nothing.")
    used = tuple(used_adapter(r, a) for r, a in zip(requests, adapters, strict=True))
    beside = tuple(
        file
        for file, adapter in zip(files, adapters, strict=True)
        if adapter.embeddings or adapter.hypernetwork is not None or adapter.negative is not None
    )
    return Attached(files, used, beside, tuple(dict.fromkeys(notes)))


def training_note(attached: Attached, *, whole_model: bool) -> tuple[str, ...]:
    """What training on top of adapters means for the result, before the first step."""
    if not attached.files:
        return ()
    if whole_model:
        return (
            f"{attached.shown} stays attached during training and is part of the model that is "
            "saved.",
            *(
                f"{file.name} holds words, networks or a negative branch, which are no part of a "
                f"model's file: add it to the result again with --add {file.flag}."
                for file in attached.beside
            ),
        )
    return (
        f"{attached.shown} stays attached during training: what is learned belongs on a base that "
        "has it too (generate --add).",
    )


def without_what_it_was_trained_with(
    wanted: Sequence[AdapterRequest], files: Mapping[Path, Adapter], there: Sequence[AttachedFile]
) -> list[str]:
    """A line for each adapter that a file says it was trained on top of, and that is not on the
    base, or not as strongly.

    there: what is on the base already.
    """
    notes = []
    for request in wanted:
        for one in declared_attached(files[request.path].metadata):
            found = [file for file in there if file.sha256 == one.sha256]
            found += [
                AttachedFile(other.path.name, one.sha256, other.denoiser_weight, other.text_weight)
                for other in wanted
                if is_same_file(other.path, one)
            ]
            if not found:
                notes.append(
                    f"{request.path.name} was trained with {one.name} attached, which is not here: "
                    f"it may look otherwise than in training. Add it with --add {one.flag}."
                )
            elif all((f.denoiser, f.text) != (one.denoiser, one.text) for f in found):
                notes.append(
                    f"{request.path.name} was trained with {one.flag} attached; here it is "
                    f"{found[0].flag}."
                )
    return notes


def in_order(
    wanted: Sequence[AdapterRequest], files: Mapping[Path, Adapter]
) -> list[list[AdapterRequest]]:
    """What is put on a base together, one after another: first what others say that they were
    trained on top of, because some kinds of update depend on the weights that they find.
    """
    below = [
        request
        for request in wanted
        if any(
            is_same_file(request.path, one)
            for other in wanted
            if other is not request
            for one in declared_attached(files[other.path].metadata)
        )
    ]
    above = [request for request in wanted if request not in below]
    return [layer for layer in (below, above) if layer] or [[]]


def is_same_file(path: Path, one: AttachedFile) -> bool:
    return model_hash(path) == one.sha256


def _read(request: AdapterRequest) -> Adapter:
    return named_by_file(named_as_trained(read_adapter(request.path)), request.path)


def _negative_hash(adapter: Adapter) -> str:
    """Of a negative branch, which lies in a file of its own beside the other."""
    layers = {} if adapter.negative is None else adapter.negative.layers
    return tensors_hash(
        {f"{k} {n}": t for k, update in layers.items() for n, t in tensors_of(update).items()}
    )


def _check(base: BaseModel, wanted: Sequence[tuple[AdapterRequest, Adapter]], setting: str) -> None:
    outline = base.meta_copy()
    words: dict[str, str] = {}
    for request, adapter in wanted:
        if adapter.hypernetwork is not None and request.denoiser_weight != 0.0:
            hypernetwork.check_fits(outline, adapter.hypernetwork, adapter.name, adapter.family)
        try:
            check_fits(outline, adapter, strengths(request, adapter, base.block_of)[0])
        except ModelError as error:
            raise ModelError(f"{setting}: {request.path.name}: {error}") from error
        for word in adapter.embeddings:
            if word in words:
                raise RecipeError(
                    f"{setting}: {words[word]} and {request.path.name} both have the word {word!r}."
                )
            words[word] = request.path.name

"""A model as a table of tensors that are read one by one, whatever it lies in: a `.safetensors` or
`.ckpt` file, or a diffusers folder. The names are those of a single file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from konomi.errors import ModelError, RecipeError
from konomi.families.family import VAE, Family, TextEncoderSpec
from konomi.merging.layout import SingleFileLayout, openclip_extras
from konomi.models.architectures import architecture_of
from konomi.models.external_vae import WithVae
from konomi.models.folder import FolderSource
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.ldm_file import single_file_metadata
from konomi.models.load import load_base
from konomi.models.single_file import SingleFileSource
from konomi.models.tensor_files import TensorFile, open_component, open_tensor_file
from konomi.storage.tensor_stream import TensorReader, torch_dtype

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_LEFT = ("model_ema.", "optimizer.", "state.", "lora_", "control_model.", "first_stage_model.loss.")
"""Beginnings of the names of what is in some files beside the model."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    place: int
    """Where it lies among the others, for reading in order."""
    read_into: Callable[[int, memoryview], None] | None = None
    """Fills a buffer with its bytes from one of them on; None where it is made, not stored."""


@dataclass(slots=True)
class ModelFile:
    """An open model. Also a context manager."""

    base: LatentDiffusion
    path: Path
    tensors: dict[str, Stored]
    """Name in a single file -> tensor, in the order in which they are best read."""
    metadata: Mapping[str, str]
    """What a single file of it says of itself."""
    layout: SingleFileLayout
    beside: Mapping[str, Stored] = field(default_factory=dict)
    """What the file holds beside the model (running averages, an optimiser's state)."""
    mended: tuple[str, ...] = ()
    """What of the file was broken and is not in these tensors, a line each."""
    readers: ExitStack = field(default_factory=ExitStack)

    @property
    def family(self) -> Family:
        return self.base.spec

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def has_vae(self) -> bool:
        return any(self.layout.part_of(name) == VAE for name in self.tensors)

    def close(self) -> None:
        self.readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def open_model(
    source: str | Path, *, prediction: str | None = None, vae: str | Path | None = None
) -> ModelFile:
    """Open a model for reading tensor by tensor.

    source: what `load_base` takes: a file, a folder, `tiny`, a hub id.
    prediction: what it predicts, in place of what the file says.
    vae: where its VAE is taken from instead.

    Raises ModelError or FileFormatError in one line: what it is instead (a LoRA ...), what is
    missing.
    """
    base = load_base(source, needs_vae=False, prediction=prediction, vae=vae)
    if not base.has_single_file:
        raise ModelError(
            f"{base.name}: {base.spec.title} has no form in one file, in whose names models are "
            "merged."
        )
    layout = SingleFileLayout.of(base.spec, base.source.configs)
    found = base.source.main if isinstance(base.source, WithVae) else base.source
    with ExitStack() as stack:
        if isinstance(found, SingleFileSource):
            model = _of_file(base, found, layout, stack)
        elif isinstance(found, FolderSource):
            model = _of_folder(base, found, layout, stack)
        else:
            raise ModelError(f"{base.name}: has no file of its own that could be merged.")
        if isinstance(base.source, WithVae):
            own = {n: t for n, t in model.tensors.items() if layout.part_of(n) != VAE}
            model.tensors = own | _other_vae(base.source, layout, stack)
        model.readers = stack.pop_all()
    return model


def _of_file(
    base: LatentDiffusion, source: SingleFileSource, layout: SingleFileLayout, stack: ExitStack
) -> ModelFile:
    stored = _stored(source.file, stack)
    # Where the U-Net itself is not there, its running averages stand in for it.
    named = {alias: name for name, alias in source.aliases.items()}
    tensors, beside = {}, {}
    mended: list[str] = []
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].place):
        if name in named:
            tensors[named[name]] = tensor
        elif name.startswith(_LEFT):
            beside[name] = tensor
        elif name.endswith("position_ids"):
            where = f"{source.file.path}: {name}"
            tensors[layout.usual_name(name)] = _positions(where, tensor, mended)
        else:
            tensors[layout.usual_name(name)] = tensor
    return ModelFile(
        base,
        source.file.path,
        tensors,
        dict(source.file.metadata),
        layout,
        beside,
        tuple(mended),
    )


def _positions(where: str, stored: Stored, mended: list[str]) -> Stored:
    """A text encoder's positions, which are 0, 1, 2 ...: merges in half precision have rounded
    some of them, and other programs then read those words at wrong places.
    """
    count = stored.shape[-1] if stored.shape else 0
    right, found = torch.arange(count).expand(stored.shape), stored.read()
    if stored.dtype == torch.int64 and torch.equal(found, right):
        return stored
    wrong = (found.double() != right).flatten().nonzero().flatten().tolist()
    if wrong:
        shown = ", ".join(map(str, wrong[:8])) + (" ..." if len(wrong) > 8 else "")
        mended.append(f"{where}: is wrong at positions {shown}, and mended in the result.")
    else:
        mended.append(f"{where}: are no whole numbers (int64), and mended in the result.")
    return Stored(stored.shape, torch.int64, lambda: right.clone(), stored.place)


def _of_folder(
    base: LatentDiffusion, source: FolderSource, layout: SingleFileLayout, stack: ExitStack
) -> ModelFile:
    pieces: dict[str, Stored] = {}
    canonical_tensors = base.architecture.canonical
    for spec in base.spec.parts:
        if not (source.path / spec.folder).is_dir():
            continue
        for file in open_component(source.path / spec.folder, _STEMS):
            for name, stored in _stored(file, stack).items():
                (path,) = canonical_tensors(spec, {name: torch.empty(1, 1, device="meta")})
                if not path.endswith("position_ids"):
                    pieces[f"{spec.part}.{path}"] = stored
    tensors: dict[str, Stored] = {}
    for canonical in pieces:
        found = layout.file_name(canonical)
        if found is None:
            raise ModelError(
                f"{source.path}: {canonical} has no place in a single file, so this architecture "
                "cannot be merged."
            )
        if found not in tensors:
            tensors[found] = _assembled(found, pieces, layout, source.path)
    for encoder in base.spec.text_encoders:
        if encoder.open_clip:
            tensors |= _extras(encoder, base, tensors)
    order = sorted(tensors)
    ordered = {name: tensors[name] for name in order}
    shapes = {name: torch.empty(one.shape, device="meta") for name, one in ordered.items()}
    return ModelFile(base, source.path, ordered, single_file_metadata(base, shapes), layout)


def _other_vae(source: WithVae, layout: SingleFileLayout, stack: ExitStack) -> dict[str, Stored]:
    spec, canonical_tensors = source.family.vae, architecture_of(source.family).canonical
    if source.path.is_dir():
        files = open_component(source.path, _STEMS)
    else:
        files = [open_tensor_file(source.path)]
    pieces: dict[str, Stored] = {}
    tensors: dict[str, Stored] = {}
    for file in files:
        for name, stored in _stored(file, stack).items():
            if source.prefix is None:
                (path,) = canonical_tensors(spec, {name: torch.empty(1, 1, device="meta")})
                pieces[f"{VAE}.{path}"] = stored
            elif name.startswith(source.prefix):
                tensors[spec.file_prefix + name[len(source.prefix) :]] = stored
    for canonical in pieces:
        if found := layout.file_name(canonical):
            tensors[found] = _assembled(found, pieces, layout, source.path)
    return {name: one for name, one in tensors.items() if layout.part_of(name) == VAE}


def _stored(file: TensorFile, stack: ExitStack) -> dict[str, Stored]:
    if file.held is not None:
        held = file.held
        return {
            name: Stored(tuple(tensor.shape), tensor.dtype, lambda t=tensor: t, place)  # type: ignore[misc]
            for place, (name, tensor) in enumerate(held.items())
        }
    reader = stack.enter_context(TensorReader(file.path))
    return {
        name: Stored(
            info.shape,
            torch_dtype(info.dtype),
            partial(reader.read, name),
            info.start,
            partial(reader.read_into, name),
        )
        for name, info in reader.header.tensors.items()
    }


def _assembled(
    name: str, pieces: Mapping[str, Stored], layout: SingleFileLayout, where: Path
) -> Stored:
    wanted = layout.names(name)
    missing = [path for path in wanted if path not in pieces]
    if missing:
        raise ModelError(f"{where}: {missing[0]} is missing, so this is not a complete model.")
    outline = {
        path: torch.empty(pieces[path].shape, dtype=pieces[path].dtype, device="meta")
        for path in wanted
    }
    shape = layout.assemble(name, outline)

    def read() -> Tensor:
        return layout.assemble(name, {path: pieces[path].read() for path in wanted}).contiguous()

    return Stored(tuple(shape.shape), shape.dtype, read, 0)


def _extras(
    encoder: TextEncoderSpec, base: LatentDiffusion, tensors: Mapping[str, Stored]
) -> dict[str, Stored]:
    config = base.source.configs[encoder.part]
    dtype = tensors[f"{encoder.file_prefix}token_embedding.weight"].dtype
    result: dict[str, Stored] = {}
    for name, origin in openclip_extras(
        encoder, int(config["hidden_size"]), int(config["num_hidden_layers"])
    ).items():
        if isinstance(origin, str):
            copies = {k: v for k, v in tensors.items() if k.startswith(origin)}
            result |= {name + k[len(origin) :]: stored for k, stored in copies.items()}
        else:
            shape = tuple(origin().shape)
            result[name] = Stored(shape, dtype, lambda make=origin: make().to(dtype), 0)  # type: ignore[misc]
    return result


def with_averages(model: ModelFile) -> ModelFile:
    """The model with the running averages (EMA) that its file holds in place of the U-Net's
    weights. Raises ModelError where there are none.
    """
    prefix = model.family.denoiser.file_prefix
    inner = prefix.removeprefix("model.")
    found = {
        name: model.beside[average]
        for name in model.tensors
        if name.startswith(prefix)
        and (average := f"model_ema.{(inner + name[len(prefix) :]).replace('.', '')}")
        in model.beside
    }
    if not found:
        raise ModelError(f"{model.path}: holds no running averages (EMA). Leave --use-ema out.")
    missing = [n for n in model.tensors if n.startswith(prefix) and n not in found]
    if missing:
        raise ModelError(
            f"{model.path}: the running averages (EMA) lack {len(missing)} tensors of the U-Net, "
            f"such as {missing[0]}."
        )
    return replace(model, tensors=model.tensors | found)


def with_text_encoders(model: ModelFile, other: ModelFile) -> ModelFile:
    """The model with the text encoders of another one of its family. Raises ModelError where they
    are of another shape or family.
    """
    if other.family is not model.family:
        raise ModelError(
            f"{other.path}: is {other.family.title}, and {model.path} is {model.family.title}. "
            "Text encoders can be taken from a model of the same family."
        )
    prefixes = tuple(encoder.file_prefix for encoder in model.family.text_encoders)
    own = {n: t for n, t in model.tensors.items() if not n.startswith(prefixes)}
    theirs = {n: t for n, t in other.tensors.items() if n.startswith(prefixes)}
    for name, stored in theirs.items():
        if name in model.tensors and model.tensors[name].shape != stored.shape:
            raise ModelError(
                f"{name}: is {list(stored.shape)} in {other.path} and "
                f"{list(model.tensors[name].shape)} in {model.path}, so it cannot take its place."
            )
    return replace(model, tensors=own | theirs, mended=other.mended)


def refuse_unnamed(output: Path) -> None:
    """Raises RecipeError for the name of a result that other programs would not take for a
    model.
    """
    if output.suffix.lower() != ".safetensors":
        raise RecipeError(
            f"{output}: a model is written as one .safetensors file. Name it {output.stem}"
            ".safetensors; konomi convert makes a folder of it."
        )

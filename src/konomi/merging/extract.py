"""What one model has that another has not, as a LoRA: layer by layer, read from the files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from konomi.adapters.kinds import LayerUpdate
from konomi.adapters.spectrum import Spectrum, error_of, spectrum, truncated
from konomi.errors import ModelError
from konomi.families.family import VAE
from konomi.families.selectors import selects
from konomi.merging.kronecker import nearest_kronecker
from konomi.merging.low_rank import RankChoice, shared_out
from konomi.merging.model_file import ModelFile
from konomi.storage.tensor_file import is_finite

_HEADER_PER_LAYER = 400
"""Bytes that three tensors of a layer take in the header of a file."""


@dataclass(frozen=True, slots=True)
class ExtractedLayer:
    """One layer of the result."""

    key: str
    rank: int
    """1 for a Kronecker product: of its numbers in another order."""
    error: float
    """|change - what is written| / |change|."""
    norm: float
    """|change|."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What `extract_layers` found."""

    layers: dict[str, LayerUpdate]
    report: tuple[ExtractedLayer, ...]
    left: tuple[str, ...]
    """Tensors that differ and are in none of the layers that were asked for."""
    left_share: float
    """Their share of the squared norm of the whole difference."""
    spectra: dict[str, tuple[float, ...]]
    """The largest singular values of each layer's difference, as many as were computed."""


def extract_layers(
    tuned: ModelFile,
    base: ModelFile,
    choice: RankChoice,
    *,
    selectors: Collection[str],
    dtype: torch.dtype,
    factor: int | None = None,
    progress: Callable[[int, int], object],
) -> Extracted:
    """Each layer's difference as two thin factors, or as a Kronecker product.

    choice: how many directions of each layer are kept.
    selectors: which layers (`transformer`, `conv`, `text` ...).
    dtype: of the factors.
    factor: width of the first factor of a Kronecker product, in place of directions.

    Where the files have different number formats, both are rounded to the coarser one first: what
    is below it is no training. Raises ModelError where the models are of different shapes,
    or do not differ in these layers.
    """
    layers: dict[str, LayerUpdate] = {}
    report: list[ExtractedLayer] = []
    spectra: dict[str, tuple[float, ...]] = {}
    chosen = _ranks(tuned, base, choice, selectors, dtype) if choice.max_bytes else None
    rest: list[tuple[str, float]] = []
    for key, change in _changes(tuned, base, progress):
        if not key.endswith(".weight") or change.dim() < 2 or not _wanted(tuned, selectors, key):
            rest.append((key, _norm(change)))
            continue
        layer = key.removesuffix(".weight")
        if factor is not None:
            product, error, values = nearest_kronecker(change, factor, dtype)
            layers[layer] = product
            report.append(ExtractedLayer(layer, 1, error, _norm(change)))
            spectra[layer] = tuple(values.tolist())
            continue
        limit = None if chosen is None else chosen[layer]
        if limit == 0:
            rest.append((key, _norm(change)))
            continue
        found = spectrum(change, choice.rank or limit)
        rank = _rank(found, choice, limit)
        update = truncated(found, rank, change.shape, dtype)
        layers[layer] = update
        report.append(ExtractedLayer(layer, rank, error_of(change, update), found.norm))
        spectra[layer] = tuple(found.values_R.tolist())
    if not layers:
        raise ModelError(
            f"{tuned.path}: does not differ from {base.path} in {', '.join(selectors)}"
            f"{f', but in {len(rest)} other tensors' if rest else ''}."
        )
    apart = sum(norm**2 for _, norm in rest)
    whole = apart + sum(layer.norm**2 for layer in report)
    left = tuple(key for key, _ in rest)
    return Extracted(layers, tuple(report), left, apart / whole, spectra)


def _norm(change: Tensor) -> float:
    return float(torch.linalg.vector_norm(change, dtype=torch.float64))


def _wanted(model: ModelFile, selectors: Collection[str], key: str) -> bool:
    layer = key.removesuffix(".weight")
    return any(selects(model.family, name, layer) for name in selectors)


def _rank(found: Spectrum, choice: RankChoice, limit: int | None) -> int:
    held = len(found.values_R)
    # Directions that are rounding alone are not worth their place.
    useful = int((found.values_R > 1e-7 * found.values_R[0]).sum())
    if limit is not None:
        return min(limit, held, useful)
    if choice.energy is not None:
        return found.rank_of(choice.energy)
    return min(choice.rank or held, held, useful)


def _ranks(
    tuned: ModelFile,
    base: ModelFile,
    choice: RankChoice,
    selectors: Collection[str],
    dtype: torch.dtype,
) -> dict[str, int]:
    """A first pass over all layers, for their singular values alone."""
    keys, spectra = [], []
    for key, change in _changes(tuned, base, lambda done, total: None):
        if key.endswith(".weight") and change.dim() > 1 and _wanted(tuned, selectors, key):
            found = spectrum(change)
            keys.append(key.removesuffix(".weight"))
            spectra.append((found.values_R.clone(), sum(change.flatten(1).shape)))
    room = (choice.max_bytes or 0) - _HEADER_PER_LAYER * len(keys)
    return dict(zip(keys, shared_out(spectra, max(room, 0), dtype.itemsize), strict=True))


def _changes(
    tuned: ModelFile, base: ModelFile, progress: Callable[[int, int], object]
) -> Iterator[tuple[str, Tensor]]:
    """Canonical name of each weight and bias that differs, and the difference in float32."""
    names = [
        name
        for name in tuned.tensors
        if name in base.tensors and tuned.layout.part_of(name) not in (None, VAE)
    ]
    for done, name in enumerate(names):
        progress(done + 1, len(names))
        one, other = tuned.tensors[name], base.tensors[name]
        if one.shape != other.shape:
            raise ModelError(
                f"{name}: is {list(one.shape)} in {tuned.path} and {list(other.shape)} in "
                f"{base.path}, so nothing can be extracted."
            )
        ours, theirs = one.read(), other.read()
        for where, tensor in ((tuned.path, ours), (base.path, theirs)):
            if not is_finite(tensor):
                raise ModelError(f"{where}: {name} holds NaN or infinity. The file is broken.")
        coarse = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        change = ours.to(coarse).float() - theirs.to(coarse).float()
        if bool(change.any()):
            for key, piece in tuned.layout.canonical(name, change).items():
                if bool(piece.any()):
                    yield key, piece

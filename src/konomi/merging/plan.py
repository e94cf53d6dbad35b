"""From open models to the jobs of a merge: which tensors go together, and what is said of those
that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from konomi.errors import ModelError, RecipeError
from konomi.families.family import DENOISER, VAE
from konomi.merging.formulas import Knobs
from konomi.merging.methods import MergeMethod
from konomi.merging.model_file import ModelFile, Stored
from konomi.merging.stream import Job
from konomi.merging.weights import Weights
from konomi.models.noise_config import prediction_word
from konomi.models.prediction import V_MARKER, ZERO_SNR_MARKER, marker_tensors

_MARKERS = (V_MARKER, ZERO_SNR_MARKER)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge will do."""

    jobs: tuple[Job, ...]
    merged: tuple[str, ...]
    """Names of the tensors that are merged; the others are the first model's."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def check_alike(models: Sequence[ModelFile], method: MergeMethod, *, prediction_told: bool) -> None:
    """Raises ModelError where models do not go together: other families, other predictions, an
    inpainting model beside an ordinary one in a way that cannot mix them.
    """
    first, *others = models
    for other in others:
        if other.family is not first.family:
            raise ModelError(
                f"{other.path}: is {other.family.title}, and {first.path} is "
                f"{first.family.title}. Only models of one family can be merged."
            )
    for other in others:
        ours, theirs = (prediction_word(one.base.process.prediction) for one in (first, other))
        if ours != theirs and not prediction_told:
            raise ModelError(
                f"{other.path}: predicts {theirs}, and {first.path} {ours}; merged, they predict "
                "neither. If you want it all the same, say what the result is to be used as: "
                f"--prediction {ours}."
            )
    if len({one.base.inpainting for one in models}) == 1:
        return
    if not method.differences:
        raise ModelError(
            f"an inpainting model and an ordinary one are merged by --how add_difference alone, "
            f"the inpainting model first; --how is {method.name}."
        )
    if not first.base.inpainting or any(other.base.inpainting for other in others):
        wrong = next(one for one in models if one.base.inpainting and one is not first)
        raise ModelError(
            f"{wrong.path}: is an inpainting model. Give it as the first one, and the difference "
            "of two ordinary ones after it."
        )


def plan_merge(
    models: Sequence[ModelFile],
    method: MergeMethod,
    knobs: Knobs,
    weights: Weights,
    *,
    dtype: torch.dtype | None,
    merge_vae: bool,
) -> Plan:
    """Decide for every tensor. No numbers are read.

    dtype: of the result; None keeps that of each of the first model's tensors.
    merge_vae: the VAE is merged too; otherwise it is the first model's.
    """
    first, *others = models
    jobs, merged, missing, resized = [], [], [], []
    for name, stored in first.tensors.items():
        if name in _MARKERS:
            continue
        part = first.layout.part_of(name)
        job = Job(name, _kept(stored, dtype), stored.shape, ((str(first.path), stored),))
        found = [other.tensors.get(name) for other in others]
        if part is None or (part == VAE and not merge_vae) or not stored.dtype.is_floating_point:
            jobs.append(job)
            continue
        if any(one is None for one in found):
            missing.append(name)
            jobs.append(job)
            continue
        fitted = [_fit(one, stored, name, method) for one in found if one is not None]
        if any(one is None for one in fitted):
            if part == DENOISER or not name.endswith("token_embedding.weight"):
                raise _misfit(name, models)
            resized.append(name)
            jobs.append(job)
            continue
        merged.append(name)
        inputs = [(str(o.path), one) for o, one in zip(others, fitted, strict=True) if one]
        own = replace(knobs, alpha=weights.of(name, first.family), name=name)
        formula: Callable[[Sequence[Tensor]], Tensor] = partial(_apply, method, own)
        jobs.append(
            replace(
                job,
                inputs=(*job.inputs, *inputs),
                formula=formula,
                by_value=method.by_value,
                rounds_once=method.rounds_once,
            )
        )
    jobs += _markers(first)
    if not merged:
        raise ModelError(f"{first.path}: has no tensor that all the models have.")
    notes = _notes(models, missing, resized, merge_vae=merge_vae)
    return Plan(tuple(jobs), tuple(merged), (*notes, *weights.unused()))


def plan_copy(model: ModelFile, *, dtype: torch.dtype | None) -> Plan:
    """The model alone, without what lies beside it in its file, in another number format.

    dtype: None keeps that of each tensor. Eight bits are for the matrices of U-Net and text
    encoders, where programs look for them; what is sensitive to rounding and small, biases, norms
    and the VAE, is fp16 then.
    """
    jobs = []
    for name, stored in model.tensors.items():
        if name not in _MARKERS:
            wanted = dtype
            if dtype is not None and dtype.itemsize == 1 and not _in_eight_bits(model, name):
                wanted = torch.float16
            inputs = ((str(model.path), stored),)
            jobs.append(Job(name, _kept(stored, wanted), stored.shape, inputs))
    notes = _notes([model], (), (), merge_vae=False)
    return Plan((*jobs, *_markers(model)), (), notes)


def _in_eight_bits(model: ModelFile, name: str) -> bool:
    part = model.layout.part_of(name)
    return part not in (None, VAE) and len(model.tensors[name].shape) > 1


def _apply(method: MergeMethod, knobs: Knobs, tensors: Sequence[Tensor]) -> Tensor:
    return method.formula(tensors, knobs)


def _kept(stored: Stored, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype


def _fit(stored: Stored, wanted: Stored, name: str, method: MergeMethod) -> Stored | None:
    """A tensor in the shape of the first model's; None where that cannot be."""
    if stored.shape == wanted.shape or _flat(stored.shape) == _flat(wanted.shape):
        return stored
    if (
        method.differences
        and len(wanted.shape) == len(stored.shape) == 4
        and stored.shape[1] < wanted.shape[1]
        and (stored.shape[0], *stored.shape[2:]) == (wanted.shape[0], *wanted.shape[2:])
    ):
        # The inpainting model's further channels get no difference.
        padded = partial(_padded, stored, wanted.shape)
        return replace(stored, shape=wanted.shape, read=padded, read_into=None)
    return None


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution and a linear layer stand for each other."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _padded(stored: Stored, shape: tuple[int, ...]) -> Tensor:
    result = torch.zeros(shape, dtype=stored.dtype)
    result[:, : stored.shape[1]] = stored.read()
    return result


def _misfit(name: str, models: Sequence[ModelFile]) -> Exception:
    shapes = ", ".join(f"{one.path.name} {list(one.tensors[name].shape)}" for one in models)
    if name.endswith("input_blocks.0.0.weight"):
        return RecipeError(
            f"{name}: the models read different numbers of channels ({shapes}). Give an inpainting "
            "model first, with --how add_difference."
        )
    return ModelError(f"{name}: is of different shapes ({shapes}), so they cannot be merged.")


def _markers(first: ModelFile) -> list[Job]:
    base = first.base
    marks = marker_tensors(base.process.prediction, zero_terminal_snr=base.zero_terminal_snr)
    return [
        Job(
            name,
            tensor.dtype,
            tuple(tensor.shape),
            ((str(first.path), Stored(tuple(tensor.shape), tensor.dtype, tensor.clone, 0)),),
        )
        for name, tensor in marks.items()
    ]


def _notes(
    models: Sequence[ModelFile],
    missing: Sequence[str],
    resized: Sequence[str],
    *,
    merge_vae: bool,
) -> tuple[str, ...]:
    first, *others = models
    lines = [note for one in models for note in one.base.notes]
    if missing:
        lines.append(
            f"{len(missing)} tensors are not in all models and stay {first.path.name}'s, such as "
            f"{missing[0]}."
        )
    for name in resized:
        lines.append(f"{name}: is of different lengths, and stays {first.path.name}'s.")
    for other in others:
        extra = [
            name
            for name in other.tensors
            if name not in first.tensors
            and (part := other.layout.part_of(name)) is not None
            and (part != VAE or merge_vae)
        ]
        if extra:
            lines.append(
                f"{other.path}: {len(extra)} tensors are not in {first.path.name} and are left "
                f"out, such as {extra[0]}."
            )
    lines += first.mended
    if first.beside:
        lines.append(
            f"{first.path}: {len(first.beside)} tensors beside the model are left out, such as "
            f"{next(iter(first.beside))}."
        )
    if not first.has_vae:
        lines.append(f"{first.path}: has no VAE, and neither has the result. --vae gives it one.")
    return tuple(dict.fromkeys(lines))

"""Adapters folded into the tensors of a model's file, one by one: what `attach` does to a loaded
base, without loading it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, check_fits
from konomi.adapters.delta import bias_delta, delta_at
from konomi.adapters.kinds import LayerUpdate
from konomi.errors import RecipeError
from konomi.merging.layout import SingleFileLayout
from konomi.merging.model_file import ModelFile
from konomi.merging.plan import plan_copy
from konomi.merging.stream import Job

Uses = tuple[tuple[LayerUpdate, float], ...]
"""The updates of one layer, each with its strength."""


@dataclass(frozen=True, slots=True)
class BakePlan:
    """What baking will do."""

    jobs: tuple[Job, ...]
    keys: tuple[str, ...]
    """Canonical keys of the layers that change."""
    notes: tuple[str, ...]


def plan_bake(
    model: ModelFile,
    adapters: Sequence[tuple[Adapter, Strengths]],
    *,
    dtype: torch.dtype | None,
) -> BakePlan:
    """Decide what happens to every tensor. No numbers of the model are read.

    dtype: of the result; None keeps that of each tensor.

    Raises ModelError where an adapter does not fit, RecipeError for one that no weights can hold.
    """
    outline = model.base.meta_copy()
    uses: dict[str, list[tuple[LayerUpdate, float]]] = {}
    notes = list(model.base.notes)
    for adapter, strengths in adapters:
        if adapter.hypernetwork is not None or adapter.negative is not None:
            kind = "a hypernetwork" if adapter.hypernetwork is not None else "two branches"
            raise RecipeError(
                f"{adapter.name}: is {kind}, which the weights of a model cannot hold. Use it with "
                "--add when you generate."
            )
        check_fits(outline, adapter, strengths)
        for word in adapter.embeddings:
            notes.append(
                f"{adapter.name}: its word {word!r} stays out, because a model's file has no place "
                "for words. To use it, draw from the base with --add instead."
            )
        for key, update in adapter.layers.items():
            if strength := strengths.of(key):
                uses.setdefault(key, []).append((update, strength))
    affected: dict[str, dict[str, Uses]] = {}
    for key, layer in uses.items():
        for ending in ("weight", "bias"):
            name = model.layout.file_name(f"{key}.{ending}")
            if name in model.tensors:
                affected.setdefault(name, {})[f"{key}.{ending}"] = tuple(layer)
    plan = plan_copy(model, dtype=dtype)
    jobs = [_changed(job, affected.get(job.name), model.layout) for job in plan.jobs]
    return BakePlan(tuple(jobs), tuple(uses), (*notes, *plan.notes))


def _changed(job: Job, uses: Mapping[str, Uses] | None, layout: SingleFileLayout) -> Job:
    if not uses:
        return job
    return Job(job.name, job.dtype, job.shape, job.inputs, partial(_bake, job.name, uses, layout))


def _bake(
    name: str, uses: Mapping[str, Uses], layout: SingleFileLayout, tensors: Sequence[Tensor]
) -> Tensor:
    (tensor,) = tensors
    pieces = layout.canonical(name, tensor)
    for path, layer in uses.items():
        origin, total = pieces[path], None
        for update, strength in layer:
            if path.endswith(".weight"):
                change: Tensor | None = delta_at(update, origin, strength)
            else:
                change = bias_delta(update, origin)
                change = None if change is None else change * strength
            if change is not None:
                total = change if total is None else total.add_(change)
        if total is not None:
            pieces[path] = total.add_(origin)
    return layout.assemble(name, pieces).reshape(tensor.shape)

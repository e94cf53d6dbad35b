"""One merge of a recipe: what its settings mean for the models at hand, and its result as a model
that the next step reads tensor by tensor, without a file between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.config.merging import MergeStep
from konomi.errors import RecipeError
from konomi.merging.formulas import Knobs
from konomi.merging.methods import MergeMethod, check_count, method_named
from konomi.merging.model_file import ModelFile, Stored
from konomi.merging.plan import Plan, check_alike, plan_merge
from konomi.merging.stream import Job, computed
from konomi.merging.weights import Weights, parse_blocks, parse_rules
from konomi.storage.tensor_file import tensor_bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step will do."""

    plan: Plan
    settings: dict[str, Any]
    """What decided it, for the metadata."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def plan_step(
    models: Sequence[ModelFile],
    step: MergeStep,
    *,
    dtype: torch.dtype | None,
    merge_vae: bool,
    prediction_told: bool,
) -> StepPlan:
    """Decide what happens to every tensor. No numbers are read.

    dtype: of the result; None keeps that of each of the first model's tensors.

    Raises RecipeError for settings that mean nothing, ModelError for models that do not go
    together.
    """
    method = method_named(step.how)
    check_count(method, len(models))
    knobs, notes = _knobs(method, step)
    check_alike(models, method, prediction_told=prediction_told)
    blocks = parse_blocks(step.blocks, models[0].family) if step.blocks else {}
    weights = Weights(knobs.alpha, step.base_alpha, blocks, parse_rules(step.rules))
    if method.alpha is None:
        weighted = {"--blocks": step.blocks or None, "--base-alpha": step.base_alpha}
        notes += _without_effect(method, weighted | {"--rule": step.rules or None})
    plan = plan_merge(models, method, knobs, weights, dtype=dtype, merge_vae=merge_vae)
    settings = _settings(method, knobs, step, merge_vae=merge_vae)
    return StepPlan(plan, settings, (*notes, *plan.notes))


def check_settings(step: MergeStep) -> None:
    """Raises RecipeError for what is wrong whatever the models are."""
    method = method_named(step.how)
    check_count(method, len(step.models))
    _knobs(method, step)


def result_of(planned: StepPlan, first: ModelFile, name: str) -> ModelFile:
    """The result of a step as a model, whose tensors are computed when they are read, in float32.

    first: the first of its models, of which it has everything that is not merged.
    """
    tensors = {}
    for place, job in enumerate(planned.plan.jobs):
        if job.name in first.tensors:
            ((_, kept), *_) = job.inputs
            tensors[job.name] = kept if job.formula is None else _computed(job, place)
    return replace(first, path=Path(name), tensors=tensors, beside={}, mended=())


def _computed(job: Job, place: int) -> Stored:
    wide = replace(job, dtype=torch.float32)
    stored = [one for _, one in job.inputs]
    # A piece of what can only be read whole would read the whole for every piece.
    in_pieces = job.by_value and all(one.read_into is not None for one in stored)
    return Stored(
        job.shape,
        torch.float32,
        partial(_whole, wide),
        place,
        partial(_piece, wide) if in_pieces else None,
    )


def _whole(job: Job) -> Tensor:
    return computed(job, [one.read().reshape(job.shape) for _, one in job.inputs])


def _piece(job: Job, first: int, target: memoryview) -> None:
    start, size = first // 4, len(target) // 4
    pieces = []
    for _, one in job.inputs:
        assert one.read_into is not None
        piece = torch.empty(size, dtype=one.dtype)
        one.read_into(start * one.dtype.itemsize, tensor_bytes(piece))
        pieces.append(piece)
    target[:] = tensor_bytes(computed(job, pieces))


def _knobs(method: MergeMethod, step: MergeStep) -> tuple[Knobs, list[str]]:
    """What the way is told, and a line on what it does not follow."""
    told = {"--alpha": step.alpha, "--beta": step.beta, "--density": step.density}
    usual = {"--alpha": method.alpha, "--beta": method.beta, "--density": method.density}
    for flag, value in told.items():
        if value is not None and not isfinite(value):
            raise RecipeError(f"{flag} is {value}; it is a number.")
    unused: dict[str, Any] = {flag: v for flag, v in told.items() if usual[flag] is None}
    if step.seed and not method.random:
        unused["--seed"] = step.seed
    set_to = {
        flag: value if value is not None else (usual[flag] or 0.0) for flag, value in told.items()
    }
    if method.density is not None and not 0 < set_to["--density"] <= 1:
        raise RecipeError(
            f"--density is {set_to['--density']}; it is a share above 0 and at most 1."
        )
    if method.name in ("top_k", "crossover") and not 0 <= set_to["--alpha"] <= 1:
        raise RecipeError(f"--alpha is {step.alpha}; {method.name} takes a share from 0 to 1.")
    knobs = Knobs(set_to["--alpha"], set_to["--beta"], set_to["--density"], step.seed)
    return knobs, _without_effect(method, unused)


def _without_effect(method: MergeMethod, told: dict[str, Any]) -> list[str]:
    named = [flag for flag, value in told.items() if value is not None]
    return [f"{', '.join(named)}: without effect with --how {method.name}."] if named else []


def _settings(
    method: MergeMethod, knobs: Knobs, step: MergeStep, *, merge_vae: bool
) -> dict[str, Any]:
    told: dict[str, Any] = {"how": method.name}
    if method.alpha is not None:
        told["alpha"] = knobs.alpha
        told |= {"blocks": step.blocks} if step.blocks else {}
        told |= {"base_alpha": step.base_alpha} if step.base_alpha is not None else {}
        told |= {"rules": list(step.rules)} if step.rules else {}
    told |= {"beta": knobs.beta} if method.beta is not None else {}
    told |= {"density": knobs.density} if method.density is not None else {}
    told |= {"seed": knobs.seed} if method.random else {}
    return told | ({"merge_vae": True} if merge_vae else {})

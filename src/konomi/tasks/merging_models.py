"""`merge models`: several models in one, tensor by tensor."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from konomi.errors import RecipeError
from konomi.hardware.precision import precision_of_flag
from konomi.merging.formulas import Knobs
from konomi.merging.methods import MergeMethod, check_count, method_named
from konomi.merging.model_file import ModelFile, open_model, refuse_unnamed
from konomi.merging.plan import Plan, check_alike, plan_merge
from konomi.merging.provenance import Hashes, merge_metadata
from konomi.merging.stream import write_merged
from konomi.merging.weights import Weights, parse_blocks, parse_rules
from konomi.tasks.files import check_new


@dataclass(frozen=True, slots=True)
class ModelMerge:
    """What `merge_models` did."""

    path: Path
    how: str
    models: tuple[str, ...]
    num_merged: int
    """Tensors that were merged."""
    num_kept: int
    """Tensors that are the first model's."""
    settings: dict[str, Any]
    """What the way was told, as it stands in the file's metadata."""
    hashes: tuple[str, ...]
    """SHA-256 of the models."""
    notes: tuple[str, ...]
    seconds: float


def merge_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    how: str = "weighted_sum",
    alpha: float | None = None,
    beta: float | None = None,
    density: float | None = None,
    seed: int = 0,
    blocks: str | None = None,
    base_alpha: float | None = None,
    rules: Sequence[str] = (),
    precision: str | None = None,
    vae: str | Path | None = None,
    merge_vae: bool = False,
    prediction: str | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> ModelMerge:
    """Merge models of one family into one .safetensors file. No model is ever in memory whole.

    models: files (.safetensors, .ckpt), diffusers folders, `tiny` or hub ids. The first gives the
        names, the number formats and what is not in the others; ways that need a common ancestor
        take it as the last.
    output: a new .safetensors file.
    how: the way, one of `konomi.merging.methods.METHODS`.
    alpha, beta, density, seed: what the way is told; by default what is usual for it.
    blocks: alpha by block of the denoiser: a preset, `IN00:0,OUT11:1`, or a number for each.
    base_alpha: alpha of the text encoders.
    rules: `PATTERN:WEIGHT`, alpha of the tensors with such names; the last that fits decides.
    precision: of the result (fp32, fp16, bf16); by default that of the first model's tensors.
    vae: where the VAE is taken from; by default the first model's is kept.
    merge_vae: merge the VAEs too, with alpha.
    prediction: what the result predicts, needed where the models do not agree.
    tell: is handed a line on what a person should know.
    progress: is handed the bytes read so far, and in all.

    Raises KonomiError.
    """
    started = perf_counter()
    output = Path(output)
    method = method_named(how)
    check_count(method, len(models))
    _check_files(models, output, vae=vae, merge_vae=merge_vae)
    dtype = None if precision is None else precision_of_flag(precision)
    knobs, notes = _knobs(method, alpha=alpha, beta=beta, density=density, seed=seed)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_model(models[0], prediction=prediction, vae=vae)),
            *(stack.enter_context(open_model(model)) for model in models[1:]),
        ]
        check_alike(opened, method, prediction_told=prediction is not None)
        weights = Weights(
            knobs.alpha,
            base_alpha,
            parse_blocks(blocks, opened[0].family) if blocks else {},
            parse_rules(rules),
        )
        weighted = {"--blocks": blocks, "--base-alpha": base_alpha, "--rule": rules or None}
        notes += _without_effect(method, weighted) if method.alpha is None else []
        plan = plan_merge(opened, method, knobs, weights, dtype=dtype, merge_vae=merge_vae)
        notes += plan.notes
        for note in notes:
            tell(note)
        settings = _settings(method, knobs, blocks, base_alpha, rules, merge_vae=merge_vae)
        name = Path(vae or "").name
        describe = partial(merge_metadata, opened, output, settings, dtype=dtype, vae=name)
        hashes = _write(opened, plan, output, describe, progress)
        return ModelMerge(
            output,
            how,
            tuple(str(one.path) for one in opened),
            len(plan.merged),
            len(plan.jobs) - len(plan.merged),
            settings,
            hashes,
            tuple(notes),
            perf_counter() - started,
        )


def _write(
    opened: Sequence[ModelFile],
    plan: Plan,
    output: Path,
    describe: Callable[..., dict[str, str]],
    progress: Callable[[int, int], object],
) -> tuple[str, ...]:
    """Write the file; returns the hashes of the models, which are computed meanwhile."""
    with closing(Hashes([one.path for one in opened])) as hashes:
        finish = partial(describe, hashes=hashes)
        write_merged(output, plan.jobs, describe(), finish=finish, progress=progress)
        return tuple(hashes.of(one.path) for one in opened)


def _check_files(
    models: Sequence[str | Path], output: Path, *, vae: str | Path | None, merge_vae: bool
) -> None:
    refuse_unnamed(output)
    check_new(output)
    if vae is not None and merge_vae:
        raise RecipeError("--vae and --merge-vae exclude each other: choose one.")


def _knobs(
    method: MergeMethod,
    *,
    alpha: float | None,
    beta: float | None,
    density: float | None,
    seed: int,
) -> tuple[Knobs, list[str]]:
    """What the way is told, and a line on what it does not follow."""
    told = {"--alpha": alpha, "--beta": beta, "--density": density}
    usual = {"--alpha": method.alpha, "--beta": method.beta, "--density": method.density}
    for flag, value in told.items():
        if value is not None and not isfinite(value):
            raise RecipeError(f"{flag} is {value}; it is a number.")
    unused = {flag: value for flag, value in told.items() if usual[flag] is None}
    if seed and not method.random:
        unused["--seed"] = seed
    set_to = {
        flag: value if value is not None else (usual[flag] or 0.0) for flag, value in told.items()
    }
    if method.density is not None and not 0 < set_to["--density"] <= 1:
        raise RecipeError(
            f"--density is {set_to['--density']}; it is a share above 0 and at most 1."
        )
    if method.name in ("top_k", "crossover") and not 0 <= set_to["--alpha"] <= 1:
        raise RecipeError(f"--alpha is {alpha}; {method.name} takes a share from 0 to 1.")
    knobs = Knobs(set_to["--alpha"], set_to["--beta"], set_to["--density"], seed)
    return knobs, _without_effect(method, unused)


def _without_effect(method: MergeMethod, told: dict[str, Any]) -> list[str]:
    named = [flag for flag, value in told.items() if value is not None]
    return [f"{', '.join(named)}: without effect with --how {method.name}."] if named else []


def _settings(
    method: MergeMethod,
    knobs: Knobs,
    blocks: str | None,
    base_alpha: float | None,
    rules: Sequence[str],
    *,
    merge_vae: bool,
) -> dict[str, Any]:
    """What decided the result, for its metadata."""
    told: dict[str, Any] = {"how": method.name}
    if method.alpha is not None:
        told["alpha"] = knobs.alpha
        told |= {"blocks": blocks} if blocks else {}
        told |= {"base_alpha": base_alpha} if base_alpha is not None else {}
        told |= {"rules": list(rules)} if rules else {}
    told |= {"beta": knobs.beta} if method.beta is not None else {}
    told |= {"density": knobs.density} if method.density is not None else {}
    told |= {"seed": knobs.seed} if method.random else {}
    return told | ({"merge_vae": True} if merge_vae else {})

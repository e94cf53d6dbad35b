"""`merge models` and `merge recipe`: several models in one, tensor by tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from konomi.config.merging import MergeRecipe, MergeStep, read_merge_recipe
from konomi.errors import ModelError, RecipeError
from konomi.hardware.precision import precision_of_flag
from konomi.merging.model_file import ModelFile, open_model, refuse_unnamed
from konomi.merging.provenance import Hashes, merge_metadata
from konomi.merging.step import StepPlan, check_settings, plan_step, result_of
from konomi.merging.stream import Job, write_merged
from konomi.tasks.files import check_new


@dataclass(frozen=True, slots=True)
class ModelMerge:
    """What `merge_models` or `merge_recipe` did."""

    path: Path
    how: str
    """The way; `recipe` where there are several steps."""
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
    step = MergeStep(
        models=tuple(map(str, models)),
        how=how,
        alpha=alpha,
        beta=beta,
        density=density,
        seed=seed,
        blocks=blocks or "",
        base_alpha=base_alpha,
        rules=tuple(rules),
    )
    whole = MergeRecipe(
        merge=(step,),
        precision=precision,
        vae=None if vae is None else str(vae),
        merge_vae=merge_vae,
        prediction=prediction,
    )
    return _merge(whole, Path(output), tell, progress)


def merge_recipe(
    recipe: str | Path,
    output: str | Path,
    *,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> ModelMerge:
    """Do the merges of a recipe one after the other, in float32 and in one pass: what is between
    them is never written.

    recipe: a TOML file of `[[merge]]` steps, `konomi.config.merging.MergeRecipe`.
    output: a new .safetensors file.
    tell: is handed a line on what a person should know.
    progress: is handed the bytes read so far, and in all.

    Raises KonomiError.
    """
    return _merge(read_merge_recipe(Path(recipe)), Path(output), tell, progress)


def _merge(
    recipe: MergeRecipe,
    output: Path,
    tell: Callable[[str], object],
    progress: Callable[[int, int], object],
) -> ModelMerge:
    started = perf_counter()
    dtype = checked_output(output, recipe.precision)
    if recipe.vae is not None and recipe.merge_vae:
        raise RecipeError("--vae and --merge-vae exclude each other: choose one.")
    for number, step in enumerate(recipe.merge):
        with _named(recipe, number):
            check_settings(step)
    with ExitStack() as stack:
        opened = _open_all(recipe, stack)
        steps, merged = _plan_all(recipe, opened, dtype)
        notes = tuple(dict.fromkeys(note for step in steps for note in step.notes))
        for note in notes:
            tell(note)
        settings = _settings(recipe, steps)
        name = Path(recipe.vae or "").name
        models = list(opened.values())
        describe = partial(merge_metadata, models, output, settings, dtype=dtype, vae=name)
        jobs = steps[-1].plan.jobs
        with closing(Hashes([one.path for one in models])) as hashes:
            finish = partial(describe, hashes=hashes)
            write_merged(output, jobs, describe(), finish=finish, progress=progress)
            found = tuple(hashes.of(one.path) for one in models)
        return ModelMerge(
            output,
            settings["how"],
            tuple(str(one.path) for one in models),
            len(merged),
            len(jobs) - len(merged),
            settings,
            found,
            notes,
            perf_counter() - started,
        )


def checked_output(output: Path, precision: str | None) -> torch.dtype | None:
    """The number format of a model that is going to be written. Raises RecipeError for a name that
    other programs would not take for a model's, or that is taken.
    """
    refuse_unnamed(output)
    check_new(output)
    return None if precision is None else precision_of_flag(precision)


def _open_all(recipe: MergeRecipe, stack: ExitStack) -> dict[str, ModelFile]:
    """The models that are no steps, by their names in the recipe; first the one that gives the
    result its names, its number formats and what is not merged.
    """
    steps = {step.name: step for step in recipe.merge if step.name}
    root = recipe.merge[-1].models[0]
    while root in steps:
        root = steps[root].models[0]
    files = [root, *(m for step in recipe.merge for m in step.models if m not in steps)]
    opened = {}
    for file in dict.fromkeys(files):
        told = {"prediction": recipe.prediction, "vae": recipe.vae} if file == root else {}
        opened[file] = stack.enter_context(open_model(file, **told))
    return opened


def _plan_all(
    recipe: MergeRecipe, opened: dict[str, ModelFile], dtype: torch.dtype | None
) -> tuple[list[StepPlan], set[str]]:
    """What each step does, and the names of the tensors of the result that some step merged."""
    known, planned, merged_in = dict(opened), [], dict.fromkeys(opened, frozenset[str]())
    for number, step in enumerate(recipe.merge):
        models = [known[model] for model in step.models]
        with _named(recipe, number):
            one = plan_step(
                models,
                step,
                dtype=None,
                merge_vae=recipe.merge_vae,
                prediction_told=recipe.prediction is not None,
            )
        planned.append(one)
        name = step.name or f"step {number + 1}"
        known[name] = result_of(one, models[0], name)
        merged_in[name] = merged_in[step.models[0]] | frozenset(one.plan.merged)
    last = planned[-1]
    root = next(iter(opened.values()))
    jobs = tuple(_stored_as(job, root, dtype) for job in last.plan.jobs)
    planned[-1] = replace(last, plan=replace(last.plan, jobs=jobs))
    return planned, set(merged_in[recipe.merge[-1].name or f"step {len(recipe.merge)}"])


def _stored_as(job: Job, root: ModelFile, dtype: torch.dtype | None) -> Job:
    """A job with the number format of the result in place of that between steps."""
    own = root.tensors[job.name].dtype if job.name in root.tensors else job.dtype
    return replace(job, dtype=dtype if dtype is not None and own.is_floating_point else own)


@contextmanager
def _named(recipe: MergeRecipe, number: int) -> Iterator[None]:
    """Where there are several steps, what is wrong with one is said with its name."""
    try:
        yield
    except (RecipeError, ModelError) as error:
        if len(recipe.merge) == 1:
            raise
        name = recipe.merge[number].name or f"merge.{number}"
        raise type(error)(f"{name}: {error}") from error


def _settings(recipe: MergeRecipe, steps: Sequence[StepPlan]) -> dict[str, Any]:
    if len(steps) == 1:
        return steps[0].settings
    files = {step.name for step in recipe.merge}
    told = [
        {
            **({"name": step.name} if step.name else {}),
            "models": [one if one in files else Path(one).name for one in step.models],
            **planned.settings,
        }
        for step, planned in zip(recipe.merge, steps, strict=True)
    ]
    return {"how": "recipe", "merge": told}

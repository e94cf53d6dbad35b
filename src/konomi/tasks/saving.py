"""Result files: what a method exports, in the format and precision the recipe asks for, with all
metadata.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from konomi.adapters.adapter import Adapter
from konomi.errors import RunError
from konomi.families.foreign_names import part_of_folder
from konomi.formats.adapter_file import read_adapter, write_adapter, writer_for
from konomi.formats.kohya_metadata import training_metadata
from konomi.formats.source import CUSTOM_DIFFUSION_NAMES
from konomi.formats.trained_for import attached_metadata
from konomi.formats.writer import TARGETS, Target
from konomi.generation.embedding_request import named_as_trained
from konomi.hardware.precision import PRECISIONS
from konomi.methods.method import Result, Weights
from konomi.models.save import save_folder, save_single_file
from konomi.tasks.preparing import Job
from konomi.tasks.training_facts import chosen_layers, model_metadata, training_facts

When = Literal["end", "step", "epoch"]
"""Why a result is saved: the run is complete, or so many steps or epochs are over."""


def save_result(
    job: Job,
    result: Result,
    folder: Path,
    *,
    step: int,
    when: When,
    rates: Mapping[str, float] | None = None,
) -> Path:
    """Write the result; what this run saved there before is replaced. `rates`: the groups'
    learning rates, for the metadata. Raises RunError for the disk, or a folder in the way that is
    no result.
    """
    chosen, dtype = job.recipe.save.format, PRECISIONS[job.recipe.save.precision]
    stem = stem_of(job, step, when)
    path = result_path(job, folder, stem)
    if isinstance(result, Adapter):
        facts = training_facts(job, step, result, rates=rates or {}, hashes=when == "end")
        result = _with_size(job, result)
        metadata = training_metadata(facts) | attached_metadata(job.attached.files)
        if which := chosen_layers(job):
            metadata["konomi.layers"] = json.dumps(which["layers"])
        named = replace(result, name=stem, metadata=metadata)
        write_adapter(
            named, path, to=adapter_target(chosen), dtype=dtype, replace_folder=_is_result(path)
        )
        return path
    tensors = {name: tensor.to(dtype) for name, tensor in result.tensors.items()}
    if chosen == "diffusers":
        save_folder(job.base, path, dtype=dtype, tensors=tensors, replace=_is_result(path))
        return path
    save_single_file(
        job.base, path, dtype=dtype, tensors=tensors, metadata=model_metadata(job, step)
    )
    return path


def _with_size(job: Job, result: Adapter) -> Adapter:
    """An edit is drawn at the size at which its picture was learned."""
    if result.edit is None:
        return result
    (size, *_) = job.assignment.buckets
    return replace(result, edit=replace(result.edit, size=size))


def stem_of(job: Job, step: int, when: When) -> str:
    """`NAME`, `NAME-step00000500` or `NAME-000010` (epochs), as sd-scripts names files."""
    name = job.recipe.run.name
    if when == "step":
        return f"{name}-step{step:08d}"
    return name if when == "end" else f"{name}-{step // job.summary.steps_per_epoch:06d}"


def saves_due(job: Job, step: int) -> tuple[When, ...]:
    """Which files are written after a step that is not the last."""
    run = job.recipe.run
    by_step = run.save_every and step % run.save_every == 0
    in_epoch = job.summary.steps_per_epoch * run.save_every_epochs
    by_epoch = in_epoch and step % in_epoch == 0
    return (*(("step",) if by_step else ()), *(("epoch",) if by_epoch else ()))


def result_path(job: Job, folder: Path, stem: str) -> Path:
    """Where a result lies: a folder for PEFT and for whole models in diffusers' layout, else one
    file.
    """
    chosen, makes = job.recipe.save.format, job.needs.makes
    if makes == "model":
        suffix = "" if chosen == "diffusers" else ".safetensors"
    else:
        suffix = writer_for(makes, adapter_target(chosen)).suffix
    return folder / f"{stem}{suffix}"


def adapter_target(chosen: str) -> Target | None:
    """The target word of `save.format`; None for `auto`."""
    return next((target for target in TARGETS if target == chosen), None)


def check_output_paths(job: Job, folder: Path, *, replace: bool) -> None:
    """Raises RunError if the finished result could not be put in its place: better known before
    the first step.

    `replace`: an earlier result there is this run's own, or given up by its owner.
    """
    path = result_path(job, folder, job.recipe.run.name)
    if path.is_dir() and (path.suffix == ".safetensors" or not _is_result(path)):
        raise RunError(
            f"{path}: a folder stands where the result is to be written. Choose another --output "
            "or run.name."
        )
    if path.exists() and not replace:
        raise RunError(
            f"{path}: exists already. Choose another --output or run.name, or add --overwrite."
        )


def _is_result(path: Path) -> bool:
    """Whether a folder is a model or adapter, which a later save of the same name may replace."""
    parts = [f"{folder}/adapter_config.json" for folder in part_of_folder()]
    names = ("model_index.json", "adapter_config.json", *parts)
    return any((path / name).is_file() for name in (*names, *CUSTOM_DIFFUSION_NAMES))


def as_read_back(job: Job, result: Result) -> Result:
    """The result as a reader of its file sees it: rounded, scales folded as the format does. For
    previews.
    """
    if isinstance(result, Weights):
        return result
    with tempfile.TemporaryDirectory(prefix="konomi-preview-") as folder:
        path = save_result(job, result, Path(folder), step=0, when="step")
        return named_as_trained(read_adapter(path))

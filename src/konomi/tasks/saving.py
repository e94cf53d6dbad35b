"""Result files: what a method exports, in the format and precision the recipe asks for, with all metadata."""

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from konomi.adapters.adapter import Adapter
from konomi.data.buckets import parse_size
from konomi.data.captions import final_caption
from konomi.errors import RunError
from konomi.formats import TARGETS, Target, read_adapter, write_adapter, writer_for
from konomi.formats.kohya_metadata import TrainingFacts, training_metadata
from konomi.formats.source import CUSTOM_DIFFUSION_NAMES
from konomi.generation.embedding_request import named_as_trained
from konomi.hardware.precision import PRECISIONS
from konomi.methods.method import Result, Weights
from konomi.models.save import save_folder, save_single_file
from konomi.storage.hashing import sha256_file, short_hash
from konomi.tasks.preparing import Job


def save_result(job: Job, result: Result, folder: Path, *, step: int, final: bool) -> Path:
    """Write the result; what this run saved there before is replaced. Raises RunError for the disk, or a folder in the
    way that is no result."""
    chosen, dtype = job.recipe.save.format, PRECISIONS[job.recipe.save.precision]
    stem = job.recipe.run.name if final else f"{job.recipe.run.name}-{step:06d}"
    path = result_path(job, folder, stem)
    if isinstance(result, Adapter):
        named = replace(result, name=stem, metadata=training_metadata(training_facts(job, step, hashes=final)))
        write_adapter(named, path, to=adapter_target(chosen), dtype=dtype, replace_folder=_is_result(path))
        return path
    tensors = {name: tensor.to(dtype) for name, tensor in result.tensors.items()}
    if chosen == "diffusers":
        save_folder(job.base, path, dtype=dtype, tensors=tensors, replace=_is_result(path))
        return path
    metadata = model_metadata(job, step) | result.metadata
    save_single_file(job.base, path, dtype=dtype, tensors=tensors, metadata=metadata)
    return path


def result_path(job: Job, folder: Path, stem: str) -> Path:
    """Where a result lies: a folder for PEFT and for whole models in diffusers' layout, else one file."""
    chosen, makes = job.recipe.save.format, job.method.needs.makes
    if makes == "model":
        suffix = "" if chosen == "diffusers" else ".safetensors"
    else:
        suffix = writer_for(makes, adapter_target(chosen)).suffix
    return folder / f"{stem}{suffix}"


def adapter_target(chosen: str) -> Target | None:
    """The target word of `save.format`; None for `auto`."""
    return next((target for target in TARGETS if target == chosen), None)


def check_way_is_free(job: Job, folder: Path, *, replace: bool) -> None:
    """Raises RunError if the finished result could not be put in its place: better known before the first step.

    `replace`: an earlier result there is this run's own, or given up by its owner.
    """
    path = result_path(job, folder, job.recipe.run.name)
    if path.is_dir() and (path.suffix == ".safetensors" or not _is_result(path)):
        raise RunError(
            f"{path}: a folder stands where the result is to be written. Choose another --output or run.name."
        )
    if path.exists() and not replace:
        raise RunError(f"{path}: exists already. Choose another --output or run.name, or add --overwrite.")


def _is_result(path: Path) -> bool:
    """Whether a folder is a model or adapter, which a later save of the same name may replace."""
    names = ("model_index.json", "adapter_config.json", "unet/adapter_config.json", "text_encoder/adapter_config.json")
    return any((path / name).is_file() for name in (*names, *CUSTOM_DIFFUSION_NAMES))


def as_read_back(job: Job, result: Result) -> Result:
    """The result as a reader of its file sees it: rounded, scales folded as the format does. For previews."""
    if isinstance(result, Weights):
        return result
    with tempfile.TemporaryDirectory(prefix="konomi-preview-") as folder:
        path = save_result(job, result, Path(folder), step=0, final=False)
        return named_as_trained(read_adapter(path))


def training_facts(job: Job, step: int, *, hashes: bool) -> TrainingFacts:
    """What the run knows about its adapter. `hashes`: read the whole base file for its sha256."""
    recipe, base_file = job.recipe, Path(job.recipe.base)
    is_file = base_file.is_file()
    records = [record for record in job.assignment.records if record.role == "train"]
    folders: dict[str, Counter[str]] = {}
    for record in records:
        tags = folders.setdefault(_folder_name(record.locator), Counter())
        tags.update(tag.strip() for tag in final_caption(record, recipe.data.captions, None).split(",") if tag.strip())
    counts = Counter(_folder_name(record.locator) for record in records)
    repeats = {_folder_name(record.locator): record.repeats for record in records}
    method = recipe.method
    is_embedding = job.method.needs.makes == "embedding"
    return TrainingFacts(
        name=recipe.run.name,
        family=job.base.family,
        prediction="v_prediction" if job.base.prediction == "v" else "epsilon",
        kind="textual-inversion" if is_embedding else "lora",
        network_module="" if is_embedding else "networks.lora",
        base_name=recipe.base,
        base_short_hash=short_hash(base_file) if is_file else "",
        base_sha256=sha256_file(base_file) if is_file and hashes else "",
        rank=getattr(method, "rank", None),
        alpha=getattr(method, "alpha", None) or getattr(method, "rank", None),
        network_args={"conv_dim": conv} if (conv := getattr(method, "conv_rank", 0)) else {},
        resolution=parse_size(recipe.data.resolution or str(job.base.resolution)),
        clip_skip=recipe.text.clip_skip or None,
        tag_frequency=folders,
        dataset_folders={f: {"n_repeats": repeats[f], "img_count": counts[f]} for f in counts},
        bucket_info={
            "buckets": {
                str(index): {"resolution": list(bucket), "count": count}
                for index, (bucket, count) in enumerate(sorted(job.summary.bucket_counts.items()))
            }
        },
        num_train_images=len(records),
        num_prior_images=len(job.assignment.records) - len(records),
        steps=step,
        epoch=-(-step // job.summary.steps_per_epoch),
        seed=recipe.run.seed,
        comment=recipe.save.comment,
        trigger=" ".join(dict.fromkeys(record.trigger for record in records if record.trigger)),
    )


def model_metadata(job: Job, step: int) -> dict[str, str]:
    """Metadata of a whole model: ModelSpec and a line on how it was made."""
    facts = training_metadata(training_facts(job, step, hashes=False))
    kept = {name: value for name, value in facts.items() if name.startswith("modelspec.")}
    kept["modelspec.architecture"] = kept["modelspec.architecture"].split("/")[0]
    kept["konomi"] = json.dumps({"method": job.recipe.method.kind, "base": facts["ss_sd_model_name"], "steps": step})
    return kept


def _folder_name(locator: str) -> str:
    return Path(locator.split("::")[0]).parent.name

"""Result files: what a method exports, in the format and precision the recipe asks for, with all metadata."""

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from konomi.adapters.adapter import Adapter
from konomi.data.buckets import parse_size
from konomi.data.captions import final_caption
from konomi.errors import RecipeError
from konomi.formats import Target, read_adapter, write_adapter
from konomi.formats.kohya_metadata import TrainingFacts, training_metadata
from konomi.methods.method import Result, Weights
from konomi.models.save import save_folder, save_single_file
from konomi.storage.hashing import sha256_file, short_hash
from konomi.tasks.preparing import Job

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def save_result(job: Job, result: Result, folder: Path, *, step: int, final: bool) -> Path:
    """Write the result. Raises RecipeError for a format that does not fit the method, RunError for the disk."""
    chosen, dtype = job.recipe.save.format, DTYPES[job.recipe.save.precision]
    stem = job.recipe.run.name if final else f"{job.recipe.run.name}-{step:06d}"
    if isinstance(result, Adapter):
        if chosen == "checkpoint":
            raise RecipeError("save.format is 'checkpoint', but the method makes an adapter. Use kohya or diffusers.")
        target: Target = "kohya" if chosen == "auto" else chosen
        path = folder / (stem if target == "peft" else f"{stem}.safetensors")
        named = replace(result, name=stem, metadata=training_metadata(training_facts(job, step, hashes=final)))
        write_adapter(named, path, to=target, dtype=dtype)
        return path
    if chosen in ("kohya", "peft"):
        raise RecipeError(
            f"save.format is {chosen!r}, but the method makes a whole model. Use checkpoint or diffusers."
        )
    tensors = {name: tensor.to(dtype) for name, tensor in result.tensors.items()}
    if chosen == "diffusers":
        save_folder(job.base, folder / stem, dtype=dtype, tensors=tensors)
        return folder / stem
    path = folder / f"{stem}.safetensors"
    metadata = model_metadata(job, step) | result.metadata
    save_single_file(job.base, path, dtype=dtype, tensors=tensors, metadata=metadata)
    return path


def as_read_back(job: Job, result: Result) -> Result:
    """The result as a reader of its file sees it: rounded, scales folded as the format does. For previews."""
    if isinstance(result, Weights):
        return result
    with tempfile.TemporaryDirectory(prefix="konomi-preview-") as folder:
        path = save_result(job, result, Path(folder), step=0, final=False)
        return read_adapter(path)


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
    return TrainingFacts(
        name=recipe.run.name,
        family=job.base.family,
        prediction="v_prediction" if job.base.prediction == "v" else "epsilon",
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

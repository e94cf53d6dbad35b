"""What a run says of itself in its result: by kohya's names and in kohya's formats, which other
tools read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate
from konomi.config.sections import OptimizerConfig
from konomi.data.buckets import parse_size
from konomi.data.captions import final_caption, tags_of
from konomi.data.containers import split_locator
from konomi.families.family import Family
from konomi.families.selectors import selects
from konomi.formats.kohya_metadata import TrainingFacts, training_metadata
from konomi.storage.hashing import sha256_file, short_hash
from konomi.tasks.preparing import Job
from konomi.training.optimizers import betas_of

Number = TypeVar("Number", int, float)

_OPTIMIZERS = {
    "adamw": "torch.optim.adamw.AdamW",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "adafactor": "transformers.optimization.Adafactor",
    "lion": "lion_pytorch.lion_pytorch.Lion",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "schedule_free": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
}
_PREDICTIONS: Mapping[str, Literal["v_prediction", "flow"]] = {"v": "v_prediction", "flow": "flow"}
_MIXED_PRECISION = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}


def training_facts(
    job: Job, step: int, result: Adapter | None, *, rates: Mapping[str, float], hashes: bool
) -> TrainingFacts:
    """What the run knows about its adapter, or (None) about a whole model. `rates`: learning rate
    of each parameter group. `hashes`: read the whole base file for its sha256.
    """
    recipe, base_file = job.recipe, Path(job.recipe.base)
    is_file = base_file.is_file()
    records = [record for record in job.assignment.records if record.role == "train"]
    names = folder_names([record.locator for record in records])
    folders: dict[str, Counter[str]] = {}
    for record in records:
        tags = tags_of(
            final_caption(record, recipe.data.captions, None), recipe.data.captions.separator
        )
        folders.setdefault(names[record.locator], Counter()).update(tags)
    counts = Counter(names[record.locator] for record in records)
    repeats = {names[record.locator]: record.repeats for record in records}
    rank, alpha, conv_rank = (
        (None, None, None) if result is None else network_size(result, job.base.spec)
    )
    is_embedding = job.needs.makes == "embedding"
    module, arguments = _network(job, result)
    return TrainingFacts(
        name=recipe.run.name,
        family=job.base.family,
        prediction=_PREDICTIONS.get(job.base.process.prediction, "epsilon"),
        kind="textual-inversion" if is_embedding else "lora",
        network_module="" if is_embedding else module,
        base_name=recipe.base,
        base_short_hash=short_hash(base_file) if is_file else "",
        base_sha256=sha256_file(base_file) if is_file and hashes else "",
        rank=rank,
        alpha=alpha,
        network_args=arguments | ({} if conv_rank is None else {"conv_dim": conv_rank}),
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
        extra=_settings(job, rates),
    )


def _network(job: Job, result: Adapter | None) -> tuple[str, dict[str, object]]:
    """What other programs call the kind of adapter: module and arguments."""
    config = job.recipe.method
    training = getattr(config, "training", None)
    if training is not None and training.network_module:
        own = getattr(config, training.algorithm)
        return training.network_module, asdict(own)
    updates = () if result is None else result.layers.values()
    algos = {update.about.algo for update in updates} - {""}
    if not algos:
        return "networks.lora", {}
    return "lycoris.kohya", {"algo": min(algos)} if len(algos) == 1 else {}


def network_size(adapter: Adapter, family: Family) -> tuple[int | None, float | None, int | None]:
    """Rank and alpha of an adapter's layers, and the rank of those that change convolutions, each
    as most have it: what kohya calls dim, alpha and conv_dim. None where nothing has such a thing.
    The denoiser's linear layers go first.
    """
    groups: dict[str, list[LayerUpdate]] = {"linear": [], "conv": [], "text": []}
    for key, update in adapter.layers.items():
        denoises = key.startswith("denoiser.")
        groups[
            "text" if not denoises else "conv" if selects(family, "conv", key) else "linear"
        ].append(update)
    first = next(
        (group for group in groups.values() if any(update.rank is not None for update in group)), []
    )
    rank, alpha = _usual(update.rank for update in first), _usual(update.alpha for update in first)
    return rank, alpha, _usual(update.rank for update in groups["conv"])


def _usual(values: Iterable[Number | None]) -> Number | None:
    """The value that most have; None if none has any."""
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def model_metadata(job: Job, step: int) -> dict[str, str]:
    """Metadata of a whole model: ModelSpec and a line on how it was made."""
    facts = training_metadata(training_facts(job, step, None, rates={}, hashes=False))
    kept = {name: value for name, value in facts.items() if name.startswith("modelspec.")}
    kept["modelspec.architecture"] = kept["modelspec.architecture"].split("/")[0]
    told = {"method": job.recipe.method.kind, "base": facts["ss_sd_model_name"], "steps": step}
    files = [{"name": file.name, "sha256": file.sha256, "weight": file.denoiser}
             for file in job.attached.files]  # fmt: skip
    kept["konomi"] = json.dumps(told | chosen_layers(job) | ({"adapters": files} if files else {}))
    return kept


def chosen_layers(job: Job) -> dict[str, object]:
    """Which layers were trained, where the recipe chooses them; {} where it does not."""
    chosen, method = job.needs.chosen, getattr(job.recipe.method, "lora", job.recipe.method)
    if chosen is None:
        return {}
    blocks = getattr(method, "blocks", None)
    tables = {} if blocks is None else {k: v for k, v in asdict(blocks).items() if v not in ({}, 1)}
    return {
        "layers": {
            "targets": list(getattr(method, "targets", ())),
            **tables,
            "count": chosen.num_layers,
            "blocks": chosen.blocks,
            "share_of_weights": round(chosen.share, 6),
        }
    }


def folder_names(locators: list[str]) -> dict[str, str]:
    """Locator -> name of the folder (or archive) it lies in: the last part of its path, with as
    many parts before it as keep folders of the same name apart.
    """
    folders = {locator: _folder(locator) for locator in locators}
    parts = {folder: PurePosixPath(folder).parts for folder in set(folders.values())}
    names: dict[str, str] = {}
    for folder, path in parts.items():
        others = [other for name, other in parts.items() if name != folder]
        length = 1
        while length < len(path) and any(other[-length:] == path[-length:] for other in others):
            length += 1
        names[folder] = "/".join(part for part in path[-length:] if part != "/")
    return {locator: names[folder] for locator, folder in folders.items()}


def _folder(locator: str) -> str:
    container, member = split_locator(locator)
    if not member:
        return Path(container).parent.as_posix()
    # In a tar, the place of the bytes comes before the name.
    inside = PurePosixPath(re.sub(r"^\d+\+\d+::", "", member)).parent.as_posix()
    return Path(container).as_posix() if inside == "." else f"{Path(container).as_posix()}/{inside}"


def _settings(job: Job, rates: Mapping[str, float]) -> dict[str, object]:
    """The rest of what sd-scripts writes, without `ss_`. What is off is "None", as it has it."""
    recipe, run = job.recipe, job.recipe.run
    objective, memory, captions = recipe.objective, recipe.memory, recipe.data.captions
    text = [rate for name, rate in rates.items() if name.startswith("text")]
    others = [rate for name, rate in rates.items() if not name.startswith("text")]
    per_device = run.batch_size / memory.accumulation / job.processes.world
    facts: dict[str, object] = {
        "learning_rate": max(rates.values(), default=recipe.optimizer.learning_rate),
        "unet_lr": others[0] if others else None,
        "text_encoder_lr": text[0] if text else None,
        "optimizer": _optimizer(recipe.optimizer),
        "lr_scheduler": _schedule(recipe.optimizer),
        "lr_warmup_steps": _warmup(recipe.optimizer, job.total_steps),
        "max_train_steps": job.total_steps,
        "num_epochs": -(-job.total_steps // job.summary.steps_per_epoch),
        "num_batches_per_epoch": job.summary.steps_per_epoch,
        "batch_size_per_device": max(1, round(per_device)),
        "total_batch_size": run.batch_size,
        "gradient_accumulation_steps": memory.accumulation,
        "gradient_checkpointing": memory.gradient_checkpointing,
        "mixed_precision": _MIXED_PRECISION.get(str(job.precision).removeprefix("torch."), "no"),
        "max_grad_norm": recipe.optimizer.clip_norm,
        "noise_offset": objective.noise_offset or None,
        "ip_noise_gamma": objective.input_perturbation or None,
        "min_snr_gamma": objective.snr_gamma if objective.weighting == "min_snr" else None,
        "debiased_estimation": objective.weighting == "debiased",
        "loss_type": {"mse": "l2"}.get(objective.loss, objective.loss),
        "huber_c": objective.huber_delta if objective.loss == "huber" else None,
        "zero_terminal_snr": job.base.zero_terminal_snr,
        "v_parameterization": job.base.process.prediction == "v",
        "prior_loss_weight": objective.prior_weight,
        "max_token_length": recipe.text.max_tokens if recipe.text.max_tokens > 75 else None,
        "cache_latents": recipe.data.cache.latents != "off",
        "flip_aug": recipe.data.images.flip,
        "random_crop": recipe.data.images.crop == "random",
        "shuffle_caption": captions.shuffle,
        "keep_tokens": captions.keep_tokens,
        "caption_dropout_rate": captions.dropout,
        "caption_tag_dropout_rate": captions.tag_dropout,
        "enable_bucket": recipe.data.buckets.kind != "fixed",
        "bucket_no_upscale": not recipe.data.buckets.upscale,
    }
    return {name: str(value) for name, value in facts.items()}


def _optimizer(config: OptimizerConfig) -> str:
    """`torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.999))`."""
    arguments = [f"weight_decay={config.weight_decay}"]
    if config.kind == "adafactor":
        arguments += ["scale_parameter=False", "relative_step=False"]
    else:
        arguments.append(f"betas={betas_of(config)}")
    return f"{_OPTIMIZERS[config.kind]}({','.join(arguments)})"


def _schedule(config: OptimizerConfig) -> str:
    """diffusers' names, which are kohya's."""
    if config.rates:
        return "piecewise_constant"
    if config.schedule == "constant":
        return "constant_with_warmup" if config.warmup else "constant"
    return {"cosine_restarts": "cosine_with_restarts"}.get(config.schedule, config.schedule)


def _warmup(config: OptimizerConfig, total: int) -> int:
    return round(config.warmup * total) if config.warmup < 1 else round(config.warmup)

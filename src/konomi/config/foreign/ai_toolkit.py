"""ai-toolkit's configurations (YAML or JSON): `config.process[0]` of type sd_trainer."""

from collections.abc import Mapping
from typing import Any

from konomi.config.foreign.table import (
    ITSELF,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    Imported,
    Left,
    Table,
    To,
    flattened,
    one_of,
    switch,
    whole,
)
from konomi.errors import RecipeError

TABLE: Table = {
    "model.name_or_path": To("base"),
    "network.linear": To("method.rank", whole),
    "network.rank": To("method.rank", whole),
    "network.linear_alpha": To("method.alpha", float),
    "network.alpha": To("method.alpha", float),
    "network.conv": To("method.conv_rank", whole),
    "network.conv_alpha": To("method.conv_alpha", float),
    "network.dropout": To("method.dropout", float),
    "save.dtype": To("save.precision", PRECISIONS),
    "save.save_every": To("run.save_every", whole),
    "train.steps": To("run.steps", whole),
    "train.lr": To("optimizer.learning_rate", float),
    "train.unet_lr": To("optimizer.learning_rate", float),
    "train.text_encoder_lr": To("optimizer.text_learning_rate", float),
    "train.optimizer": To("optimizer.kind", OPTIMIZERS),
    "train.optimizer_params.weight_decay": To("optimizer.weight_decay", float),
    "train.optimizer_params.betas": To(
        "optimizer.betas", lambda value: [float(part) for part in value]
    ),
    "train.lr_scheduler": To("optimizer.schedule", SCHEDULES),
    "train.max_grad_norm": To("optimizer.clip_norm", float),
    "train.dtype": To("run.precision", PRECISIONS),
    "train.noise_offset": To("objective.noise_offset", float),
    "train.min_snr_gamma": To("objective.snr_gamma", float),
    "train.gradient_checkpointing": To("memory.gradient_checkpointing", switch),
    "train.seed": To("run.seed", whole),
    "sample.sample_every": To("run.preview_every", whole),
    "sample.prompts": To("preview.prompts", lambda value: [str(prompt) for prompt in value]),
    "sample.neg": To("preview.negative"),
    "sample.seed": To("preview.seed", whole),
    "sample.guidance_scale": To("preview.guidance", float),
    "sample.sample_steps": To("preview.steps", whole),
    "network.rank_dropout": To("method.rank_dropout", float),
    "network.module_dropout": To("method.module_dropout", float),
    "network.pretrained_lora_path": To("method.start"),
    "train.loss_type": To("objective.loss", one_of(mse="mse", mae="l1", l1="l1", huber="huber")),
    "train.reg_weight": To("objective.prior_weight", float),
    "train.min_denoising_steps": To("objective.min_timestep", whole),
    "train.max_denoising_steps": To("objective.max_timestep", lambda value: whole(value) - 1),
    "model.vae_path": To("vae"),
    "model.is_v_pred": To("prediction", lambda value: "v_prediction" if switch(value) else "auto"),
    "train.noise_scheduler": ITSELF,
    "train.cache_text_embeddings": ITSELF,
    "train.unload_text_encoder": ITSELF,
    "train.xformers": ITSELF,
    "train.skip_first_sample": ITSELF,
    "model.is_xl": ITSELF,
    "model.is_v2": ITSELF,
    "model.arch": ITSELF,
    "device": To("run.device", lambda value: str(value).split(",")[0]),
    "type": ITSELF,
    "save.max_step_saves_to_keep": Left("konomi keeps every result that it saves"),
    "sample.sampler": Left("preview.sampler has other names"),
    "sample.walk_seed": Left("konomi's previews always count their seeds on"),
    "model.quantize": Left("konomi does not quantise the base yet"),
}
_SET: Table = {
    "caption_dropout_rate": To("data.captions.dropout", float),
    "shuffle_tokens": To("data.captions.shuffle", switch),
    "keep_tokens": To("data.captions.keep_tokens", whole),
    "token_dropout_rate": To("data.captions.tag_dropout", float),
    "flip_x": To("data.images.flip", switch),
    "random_crop": To("data.images.crop", lambda value: "random" if switch(value) else "center"),
    "resolution": To(
        "data.resolution", lambda value: str(max(value) if isinstance(value, list) else value)
    ),
    "caption_ext": ITSELF,
    "cache_latents_to_disk": Left("konomi caches latents on disk by default"),
    "cache_latents": Left("konomi caches latents on disk by default"),
    "buckets": To("data.buckets.kind", lambda value: "area" if switch(value) else "fixed"),
    "bucket_tolerance": To("data.buckets.step", whole),
    "alpha_mask": To("data.images.alpha", lambda value: "mask" if switch(value) else "background"),
    "mask_path": Left("masks lie beside the images, as x-masklabel.png; see objective.masked"),
}
_HANDLED = frozenset((
    "training_folder", "train.batch_size", "train.gradient_accumulation_steps",
    "train.gradient_accumulation",
    "train.train_text_encoder", "train.ema_config.use_ema", "train.ema_config.ema_decay",
    "sample.width",
    "sample.height", "network.type", "train.train_unet", "train.disable_sampling",
    "logging.use_wandb",
))  # fmt: skip
_OTHER_FAMILIES = ("is_flux", "is_v3", "is_pixart", "is_auraflow", "is_lumina2")


def import_ai_toolkit(fields: Mapping[str, Any]) -> Imported:
    """A recipe of a job's first process. Raises RecipeError where it is none, or for another
    family's model.
    """
    config = fields["config"]
    processes = config.get("process") if isinstance(config, Mapping) else None
    process = processes[0] if isinstance(processes, list) and processes else processes
    if not isinstance(process, Mapping):
        raise RecipeError("config.process: has no process to take settings from.")
    model = process.get("model")
    model = model if isinstance(model, Mapping) else {}
    other = next((name for name in _OTHER_FAMILIES if model.get(name)), None)
    if other or str(model.get("arch", "sd1")) not in ("sd1", "sd15", "sd2", "sdxl"):
        raise RecipeError(
            f"model.{other or 'arch'}: konomi trains Stable Diffusion 1, 2 and XL, not this family."
        )
    found = Imported("ai-toolkit", "lora" if process.get("network") else "full")
    flat = {
        name: value
        for name, value in flattened(process)
        if name not in ("datasets", "trigger_word")
    }
    if not flat.get("train.min_snr_gamma"):
        flat.pop("train.min_snr_gamma", None)
    own_rate_last = dict(sorted(flat.items(), key=lambda pair: pair[0] == "train.unet_lr"))
    found.apply(TABLE, own_rate_last, handled=_HANDLED)
    for index in range(1, len(processes) if isinstance(processes, list) else 1):
        found.leave(f"process.{index}", "only the first process is taken over")
    _rest(found, flat, str(config.get("name") or ""))
    _datasets(found, process.get("datasets"), str(process.get("trigger_word") or ""))
    return found


def _rest(found: Imported, flat: Mapping[str, Any], name: str) -> None:
    accumulation = whole(
        flat.get("train.gradient_accumulation_steps")
        or flat.get("train.gradient_accumulation")
        or 1
    )
    found.put(
        "train.batch_size",
        "run.batch_size",
        accumulation * whole(flat.get("train.batch_size") or 1),
    )
    if accumulation > 1:
        found.put("train.gradient_accumulation_steps", "memory.accumulation", accumulation)
    if switch(flat.get("train.ema_config.use_ema", False)):
        found.put(
            "train.ema_config",
            "optimizer.ema_decay",
            float(flat.get("train.ema_config.ema_decay") or 0.99),
        )
    if str(flat.get("network.type") or "lora").lower() not in ("lora", "locon"):
        found.leave(
            "network.type", f"{flat['network.type']!r}: konomi trains a LoRA or LoCon in its place"
        )
    if "train.train_unet" in flat and not switch(flat["train.train_unet"]):
        found.leave("train.train_unet", "konomi trains the denoiser in any case")
    if switch(flat.get("train.disable_sampling", False)):
        found.put("train.disable_sampling", "run.preview_every", 0)
    if switch(flat.get("logging.use_wandb", False)):
        found.put("logging.use_wandb", "run.trackers", ["wandb"])
    if found.kind == "full" and switch(flat.get("train.train_text_encoder", False)):
        found.put("train.train_text_encoder", "method.text_encoder", True)
    if flat.get("train.min_snr_gamma"):
        found.put("train.min_snr_gamma", "objective.weighting", "min_snr")
    if found.kind == "lora" and switch(flat.get("train.train_text_encoder", False)):
        found.put(
            "train.train_text_encoder", "method.text_rank", whole(flat.get("network.linear") or 16)
        )
    if flat.get("sample.width") and flat.get("sample.height"):
        found.put(
            "sample.width, height",
            "preview.size",
            f"{flat['sample.width']}x{flat['sample.height']}",
        )
    if name:
        found.put("config.name", "run.name", name)
    if flat.get("training_folder"):
        found.put(
            "training_folder",
            "run.output",
            f"{str(flat['training_folder']).rstrip('/')}/{name or 'run'}",
        )


def _datasets(found: Imported, datasets: Any, trigger: str) -> None:
    sources: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for entry in datasets if isinstance(datasets, list) else ():
        if not isinstance(entry, Mapping) or not entry.get("folder_path"):
            continue
        source: dict[str, Any] = {"path": str(entry["folder_path"])}
        source |= {"role": "prior"} if switch(entry.get("is_reg", False)) else {}
        source |= {"trigger": trigger} if trigger and "role" not in source else {}
        source |= {"repeats": whole(entry["num_repeats"])} if entry.get("num_repeats") else {}
        source |= (
            {"template": str(entry["default_caption"])} if entry.get("default_caption") else {}
        )
        sources.append(source)
        if isinstance(entry.get("resolution"), list) and len(entry["resolution"]) > 1:
            found.leave(
                "datasets.resolution", f"{entry['resolution']}: konomi trains one, the largest"
            )
        handled = frozenset(("folder_path", "is_reg", "num_repeats", "default_caption"))
        differing = [
            name for name in entry if first and name in _SET and entry[name] != first.get(name)
        ]
        for name in differing:
            found.leave(
                f"datasets.{name}",
                f"{entry[name]!r}: konomi has one for all sources, the first one's",
            )
        found.apply(
            _SET,
            entry if not first else {n: v for n, v in entry.items() if n not in _SET},
            handled=handled,
        )
        first = first or dict(entry)
    if sources:
        found.data.setdefault("data", {})["sources"] = sources
        found.taken.append(f"datasets -> data.sources ({len(sources)})")

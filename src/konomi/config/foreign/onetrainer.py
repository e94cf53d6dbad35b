"""OneTrainer's presets and configurations (JSON)."""

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


def _timestep(value: Any) -> int:
    return min(999, max(0, round(float(value) * 1000)))


TABLE: Table = {
    "base_model_name": To("base"),
    "resolution": To(
        "data.resolution",
        lambda value: str(value).replace(",", "x") if "x" not in str(value) else value,
    ),
    "batch_size": To("run.batch_size", whole),
    "epochs": To("run.epochs", whole),
    "learning_rate": To("optimizer.learning_rate", float),
    "learning_rate_scheduler": To("optimizer.schedule", SCHEDULES),
    "learning_rate_warmup_steps": To("optimizer.warmup", float),
    "learning_rate_cycles": To("optimizer.cycles", whole),
    "optimizer.optimizer": To("optimizer.kind", OPTIMIZERS),
    "optimizer.weight_decay": To("optimizer.weight_decay", float),
    "unet.learning_rate": To("optimizer.learning_rate", float),
    "text_encoder.learning_rate": To("optimizer.text_learning_rate", float),
    "clip_grad_norm": To("optimizer.clip_norm", float),
    "ema_decay": To("optimizer.ema_decay", float),
    "train_dtype": To("run.precision", PRECISIONS),
    "output_dtype": To("save.precision", PRECISIONS),
    "seed": To("run.seed", whole),
    "offset_noise_weight": To("objective.noise_offset", float),
    "perturbation_noise_weight": To("objective.input_perturbation", float),
    "rescale_noise_scheduler_to_zero_terminal_snr": To("objective.zero_terminal_snr", switch),
    "min_noising_strength": To("objective.min_timestep", _timestep),
    "max_noising_strength": To("objective.max_timestep", _timestep),
    "loss_weight_fn": To(
        "objective.weighting",
        one_of(constant="none", min_snr_gamma="min_snr", debiased_estimation="debiased"),
    ),
    "loss_weight_strength": To("objective.snr_gamma", float),
    "masked_training": To("objective.masked", switch),
    "gradient_checkpointing": To(
        "memory.gradient_checkpointing",
        lambda value: str(value).lower() not in ("off", "false", "none"),
    ),
    "dataloader_threads": To("data.workers", whole),
    "lora_model_name": To("method.start"),
    "lora_rank": To("method.rank", whole),
    "lora_alpha": To("method.alpha", float),
    "lora_decompose": To("method.dora", switch),
    "dropout_probability": To("method.dropout", float),
    "embedding.token_count": To("method.vectors", whole),
    "embedding.initial_embedding_text": To("method.initial"),
    "vae.model_name": To("vae"),
    "force_v_prediction": To(
        "prediction", lambda value: "v_prediction" if switch(value) else "auto"
    ),
    "force_epsilon_prediction": To(
        "prediction", lambda value: "epsilon" if switch(value) else "auto"
    ),
    "aspect_ratio_bucketing": To(
        "data.buckets.kind", lambda value: "area" if switch(value) else "fixed"
    ),
    "latent_caching": To("data.cache.latents", lambda value: "disk" if switch(value) else "off"),
    "output_model_format": To("save.format", one_of(safetensors="auto", diffusers="diffusers")),
    "compile": To("memory.compile", switch),
    "train_device": To("run.device"),
    "tensorboard": To("run.trackers", lambda value: ["tensorboard"] if switch(value) else []),
    "rolling_backup_count": To("run.keep_checkpoints", whole),
    **dict.fromkeys(
        ("model_type", "only_cache", "attention_mechanism", "weight_dtype", "temp_device"), ITSELF
    ),
    "text_encoder_layer_skip": Left("see text.clip_skip, for which 1 is the last layer"),
    "preserve_embedding_norm": Left("see method.keep_norm"),
    "workspace_dir": Left("everything lies in the run folder, run.output"),
    "text_encoder_2.train": Left("method.text_rank is for both text encoders"),
    "text_encoder_2.learning_rate": Left(
        "both text encoders have one rate, optimizer.text_learning_rate"
    ),
    "concept_file_name": Left("name the folders in data.sources"),
    "cache_dir": Left("konomi has a cache folder of its own, data.cache.folder"),
}
_METHODS = {"LORA": "lora", "FINE_TUNE": "full", "EMBEDDING": "textual_inversion"}
_ONLY = {"lora": ("lora_", "dropout_"), "textual_inversion": ("embedding.",)}


def import_onetrainer(fields: Mapping[str, Any]) -> Imported:
    """A recipe of a preset."""
    kind = _METHODS.get(str(fields.get("training_method", "LORA")), "")
    found = Imported("OneTrainer", kind or "lora")
    if not kind:
        found.leave(
            "training_method",
            f"{fields['training_method']!r}: konomi has lora, full and textual_inversion",
        )
    given = {
        name: value for name, value in fields.items() if name not in ("concepts", "training_method")
    }
    flat = dict(flattened(given))
    for method, starts in _ONLY.items():
        if method != kind:
            # Presets hold the settings of every method at once.
            for name in [name for name in flat if name.startswith(starts)]:
                found.leave(name, f"{kind or 'lora'} does not use it")
                del flat[name]
    # The part's own rate counts where it is given, so it comes last.
    flat = dict(sorted(flat.items(), key=lambda pair: pair[0].endswith(".learning_rate")))
    handled = {
        "output_model_destination",
        "gradient_accumulation_steps",
        "ema",
        "optimizer.beta1",
        "optimizer.beta2",
        "save_every",
        "save_every_unit",
        "text_encoder.train",
        "unet.train",
        "validation",
        "sample_after",
        "sample_after_unit",
        "backup_after",
        "backup_after_unit",
        "validate_after",
        "validate_after_unit",
        "mse_strength",
        "mae_strength",
        "huber_strength",
        "huber_delta",
    }
    if str(flat.get("ema", "OFF")).upper() == "OFF":
        handled.add("ema_decay")
    found.apply(TABLE, flat, handled=frozenset(handled))
    _rest(found, flat, kind)
    _concepts(found, fields.get("concepts"))
    return found


def _rest(found: Imported, flat: Mapping[str, Any], kind: str) -> None:
    accumulation = whole(flat.get("gradient_accumulation_steps") or 1)
    if accumulation > 1:
        batch = accumulation * whole(flat.get("batch_size") or 1)
        found.put("batch_size x gradient_accumulation_steps", "run.batch_size", batch)
        found.put("gradient_accumulation_steps", "memory.accumulation", accumulation)
    if flat.get("optimizer.beta1") is not None and flat.get("optimizer.beta2") is not None:
        betas = [float(flat["optimizer.beta1"]), float(flat["optimizer.beta2"])]
        found.put("optimizer.beta1, beta2", "optimizer.betas", betas)
    if flat.get("save_every") and str(flat.get("save_every_unit", "NEVER")).upper() in (
        "STEP",
        "EPOCH",
    ):
        setting = (
            "run.save_every"
            if str(flat["save_every_unit"]).upper() == "STEP"
            else "run.save_every_epochs"
        )
        found.put("save_every", setting, whole(flat["save_every"]))
    elif "save_every" in flat:
        found.leave("save_every", "its unit is neither steps nor epochs")
    _at_intervals(found, flat)
    _loss(found, flat)
    if kind == "full" and switch(flat.get("text_encoder.train", False)):
        found.put("text_encoder.train", "method.text_encoder", True)
    if kind == "lora" and switch(flat.get("text_encoder.train", False)):
        found.put("text_encoder.train", "method.text_rank", whole(flat.get("lora_rank") or 16))
    if "unet.train" in flat and not switch(flat["unet.train"]):
        found.leave("unet.train", "konomi trains the denoiser in any case")
    if flat.get("output_model_destination"):
        found.leave(
            "output_model_destination",
            "the result lies in the run folder; name it with run.output, run.name",
        )


def _at_intervals(found: Imported, flat: Mapping[str, Any]) -> None:
    for name, setting in (
        ("sample_after", "run.preview_every"),
        ("backup_after", "run.checkpoint_every"),
        ("validate_after", "run.validate_every"),
    ):
        wanted = name != "validate_after" or switch(flat.get("validation", False))
        unit = str(flat.get(f"{name}_unit", "NEVER")).upper()
        if not flat.get(name) or not wanted or unit == "NEVER":
            continue
        if unit == "STEP":
            found.put(name, setting, whole(flat[name]))
        else:
            found.leave(name, f"{flat[name]!r} {unit.lower()}: {setting} is counted in steps")


def _loss(found: Imported, flat: Mapping[str, Any]) -> None:
    strengths = {loss: float(flat.get(f"{loss}_strength") or 0) for loss in ("mse", "mae", "huber")}
    used = [loss for loss, strength in strengths.items() if strength]
    if len(used) == 1:
        found.put(f"{used[0]}_strength", "objective.loss", {"mae": "l1"}.get(used[0], used[0]))
    elif used:
        found.leave(
            ", ".join(f"{loss}_strength" for loss in used),
            "konomi has one loss, objective.loss, no mixture",
        )
    if used == ["huber"] and flat.get("huber_delta"):
        found.put("huber_delta", "objective.huber_delta", float(flat["huber_delta"]))


_OF_CONCEPTS: Table = {
    "image.enable_random_flip": To("data.images.flip", switch),
    "text.enable_tag_shuffling": To("data.captions.shuffle", switch),
    "text.tag_delimiter": To("data.captions.separator"),
    "text.keep_tags_count": To("data.captions.keep_tokens", whole),
}


def _concepts(found: Imported, concepts: Any) -> None:
    sources = []
    for concept in concepts if isinstance(concepts, list) else ():
        if not isinstance(concept, Mapping) or not concept.get("path"):
            continue
        if concept.get("enabled") is False:
            found.leave(f"concepts: {concept['path']}", "it is switched off")
            continue
        role = "prior" if "PRIOR" in str(concept.get("type", "")) else "train"
        source: dict[str, Any] = {"path": str(concept["path"]), "role": role}
        if str(concept.get("balancing_strategy", "REPEATS")) == "REPEATS" and concept.get(
            "balancing"
        ):
            source["repeats"] = max(1, round(float(concept["balancing"])))
        sources.append(source)
        own = ("path", "balancing", "balancing_strategy", "name", "type", "enabled", "seed")
        for name, value in flattened(
            {name: value for name, value in concept.items() if name not in own}
        ):
            if name in _OF_CONCEPTS:
                found.apply(_OF_CONCEPTS, {name: value})
            elif value not in (None, "", False):
                found.leave(f"concepts.{name}", "look at data.captions and data.images")
    if sources:
        found.data.setdefault("data", {})["sources"] = sources
        found.taken.append(f"concepts -> data.sources ({len(sources)})")

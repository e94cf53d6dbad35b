"""sd-scripts' arguments, from its configuration TOML (`--config_file`) or from a command line."""

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from konomi.config.foreign.sd_scripts_blocks import BLOCK_ARGUMENTS, import_blocks
from konomi.config.foreign.table import (
    ITSELF,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    Imported,
    Left,
    Table,
    To,
    one_of,
    switch,
    unless,
    whole,
)

ALWAYS = Left("konomi always does")


def _size(value: Any) -> str:
    sides = [str(whole(part)) for part in str(value).strip("()[]").split(",")]
    return sides[0] if len(set(sides)) == 1 else "x".join(sides)


def _rate(value: Any) -> float:
    if isinstance(value, list):
        value = value[0]
    return float(value)


def _loss(value: Any) -> str:
    names = {"l2": "mse", "huber": "huber", "smooth_l1": "huber", "l1": "l1"}
    if value not in names:
        raise ValueError("konomi has l2, huber and l1")
    return names[value]


_SAMPLERS = one_of(
    ddim="ddim", pndm="pndm", lms="lms", k_lms="lms", euler="euler", k_euler="euler",
    euler_a="euler_a",
    k_euler_a="euler_a", heun="heun", **{"dpmsolver++": "dpmpp_2m"},
)  # fmt: skip
_TRACKERS = one_of(tensorboard=["tensorboard"], wandb=["wandb"], all=["tensorboard", "wandb"])
_FORMATS = one_of(safetensors="auto", diffusers="diffusers", diffusers_safetensors="diffusers")

TABLE: Table = {
    "pretrained_model_name_or_path": To("base"),
    "output_name": To("run.name"),
    "resolution": To("data.resolution", _size),
    "max_train_steps": To("run.steps", whole),
    "max_train_epochs": To("run.epochs", whole),
    "scale_weight_norms": To("method.max_norm", float),
    "learning_rate": To("optimizer.learning_rate", float),
    "unet_lr": To("optimizer.learning_rate", float),
    "text_encoder_lr": To("optimizer.text_learning_rate", _rate),
    "optimizer_type": To("optimizer.kind", OPTIMIZERS),
    "lr_scheduler": To("optimizer.schedule", SCHEDULES),
    "lr_warmup_steps": To("optimizer.warmup", float),
    "lr_scheduler_num_cycles": To("optimizer.cycles", whole),
    "lr_scheduler_power": To("optimizer.power", float),
    "max_grad_norm": To("optimizer.clip_norm", float),
    "mixed_precision": To("run.precision", PRECISIONS),
    "save_precision": To("save.precision", PRECISIONS),
    "save_every_n_epochs": To("run.save_every_epochs", whole),
    "save_every_n_steps": To("run.save_every", whole),
    "sample_every_n_steps": To("run.preview_every", whole),
    "seed": To("run.seed", whole),
    "clip_skip": To("text.clip_skip", whole),
    "max_token_length": To("text.max_tokens", whole),
    "noise_offset": To("objective.noise_offset", float),
    "min_snr_gamma": To("objective.snr_gamma", float),
    "zero_terminal_snr": To("objective.zero_terminal_snr", switch),
    "ip_noise_gamma": To("objective.input_perturbation", float),
    "min_timestep": To("objective.min_timestep", whole),
    "max_timestep": To("objective.max_timestep", lambda value: whole(value) - 1),
    "prior_loss_weight": To("objective.prior_weight", float),
    "loss_type": To("objective.loss", _loss),
    "huber_c": To("objective.huber_delta", float),
    "masked_loss": To("objective.masked", switch),
    "shuffle_caption": To("data.captions.shuffle", switch),
    "keep_tokens": To("data.captions.keep_tokens", whole),
    "caption_dropout_rate": To("data.captions.dropout", float),
    "caption_tag_dropout_rate": To("data.captions.tag_dropout", float),
    "caption_separator": To("data.captions.separator"),
    "min_bucket_reso": To("data.buckets.min_side", whole),
    "max_bucket_reso": To("data.buckets.max_side", whole),
    "bucket_reso_steps": To("data.buckets.step", whole),
    "bucket_no_upscale": To("data.buckets.upscale", unless),
    "flip_aug": To("data.images.flip", switch),
    "random_crop": To("data.images.crop", lambda value: "random" if switch(value) else "center"),
    "max_data_loader_n_workers": To("data.workers", whole),
    "gradient_checkpointing": To("memory.gradient_checkpointing", switch),
    "training_comment": To("save.comment"),
    "network_dropout": To("method.dropout", float),
    "network_weights": To("method.start"),
    "num_vectors_per_token": To("method.vectors", whole),
    "init_word": To("method.initial"),
    "use_object_template": To("method.templates", lambda value: "object"),
    "use_style_template": To("method.templates", lambda value: "style"),
    "train_text_encoder": To("method.text_encoder", switch),
    "learning_rate_te": To("optimizer.text_learning_rate", float),
    "learning_rate_te1": To("optimizer.text_learning_rate", float),
    "learning_rate_te2": Left("both text encoders have one rate, optimizer.text_learning_rate"),
    "vae": To("vae"),
    "v_parameterization": To("prediction", lambda value: "v_prediction"),
    "weighted_captions": To("text.emphasis", switch),
    "alpha_mask": To("data.images.alpha", lambda value: "mask"),
    "torch_compile": To("memory.compile", switch),
    "opt_channels_last": To("memory.channels_last", switch),
    "sample_sampler": To("preview.sampler", _SAMPLERS),
    "log_with": To("run.trackers", _TRACKERS),
    "save_model_as": To("save.format", _FORMATS),
    "max_resolution": To("data.resolution", _size),
    "optimizer": To("optimizer.kind", OPTIMIZERS),
    **dict.fromkeys(("xformers", "sdpa", "mem_eff_attn", "lowram", "highvram"), ITSELF),
    **dict.fromkeys(("v2", "sdxl", "no_half_vae", "sample_at_first"), ITSELF),
    **dict.fromkeys(
        ("caption_extension", "prior_loss", "persistent_data_loader_workers", "use_safetensors"),
        ITSELF,
    ),
    **dict.fromkeys(
        ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "vae_batch_size"),
        ITSELF,
    ),
    **dict.fromkeys(
        ("cache_latents", "cache_latents_to_disk"), Left("konomi caches latents on disk by default")
    ),
    **dict.fromkeys(("save_state", "save_state_on_train_end"), ALWAYS),
    **dict.fromkeys(
        ("save_last_n_epochs", "save_last_n_steps", "save_n_epoch_ratio"),
        Left("konomi keeps every result that it saves"),
    ),
    **dict.fromkeys(
        ("save_last_n_epochs_state", "save_last_n_steps_state"),
        Left("see run.keep_checkpoints, a number of states"),
    ),
    "sample_every_n_epochs": Left("previews are counted in steps, see run.preview_every"),
    "enable_wildcard": Left(
        'konomi picks none of {a|b}; a line of several is data.captions.lines = "alternatives"'
    ),
    "conditioning_data_dir": Left(
        "masks lie beside the images, as x-masklabel.png; see objective.masked"
    ),
    "resume": Left(
        "a state of sd-scripts cannot be resumed here; `konomi resume RUN` goes on with a run of "
        "konomi"
    ),
    "sample_prompts": Left(
        "name the prompts in preview.prompts, or draw the file: konomi generate --prompt-file"
    ),
    "logging_dir": Left("the log lies in the run folder"),
    "in_json": Left("give a metadata.jsonl or caption files beside the images"),
}
_HANDLED = frozenset((
    "train_data_dir", "reg_data_dir", "dataset_config", "output_dir", "train_batch_size",
    "gradient_accumulation_steps", "network_dim", "network_alpha", "network_module", "network_args",
    "network_train_unet_only", "network_train_text_encoder_only", "optimizer_args", "token_string",
    "enable_bucket",
    "debiased_estimation_loss", "use_8bit_adam", "use_lion_optimizer", "dim_from_weights", "epoch",
))  # fmt: skip
_NETWORK_ARGS: Table = {
    "conv_dim": To("method.conv_rank", whole),
    "conv_alpha": To("method.conv_alpha", float),
    "rank_dropout": To("method.rank_dropout", float),
    "module_dropout": To("method.module_dropout", float),
    "loraplus_lr_ratio": To("method.b_rate_ratio", float),
    "loraplus_unet_lr_ratio": To("method.b_rate_ratio", float),
    "dora_wd": To("method.dora", switch),
    "algo": To(
        "method.algorithm",
        one_of(
            lora="lora",
            locon="lora",
            loha="loha",
            lokr="lokr",
            ia3="ia3",
            full="full",
            dylora="dylora",
        ),
    ),
    "factor": To("method.lokr.factor", whole),
    "decompose_both": To("method.lokr.decompose_both", switch),
    "full_matrix": To("method.lokr.full_matrix", switch),
    "train_on_input": To("method.ia3.on_input", switch),
}
_OPTIMIZER_ARGS: Table = {
    "weight_decay": To("optimizer.weight_decay", float),
    "betas": To(
        "optimizer.betas",
        lambda value: [float(part) for part in str(value).strip("()[]").split(",")],
    ),
    "d_coef": Left("give it as optimizer.learning_rate, the factor of the step that prodigy finds"),
    **dict.fromkeys(
        ("relative_step", "scale_parameter", "warmup_init"),
        Left("konomi's adafactor takes its rate as it is"),
    ),
}
_NONE_IF_ZERO = ("min_snr_gamma", "max_timestep", "max_train_steps", "max_train_epochs")
_OFF: Table = {
    "masked_loss": To("objective.masked", switch),
    "cache_latents": Left(
        'konomi caches them in any case, which changes no result; data.cache.latents = "off" does '
        "not"
    ),
    "save_state": Left(
        "konomi always keeps states to resume from, as many as run.keep_checkpoints says"
    ),
}
"""What it means that something is off, where that is not what konomi does by itself."""


def from_command(text: str) -> dict[str, Any]:
    """Arguments of a command line as the TOML has them, and `script` for the program. Raises
    ValueError.
    """
    words = shlex.split(re.sub(r"[\\^`]\s*\n", " ", text))
    start = next((index for index, word in enumerate(words) if word.endswith(".py")), -1)
    fields: dict[str, Any] = {"script": PurePosixPath(words[start]).name if start >= 0 else ""}
    name, values = "", []
    for word in [*words[start + 1 :], "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if name:
            fields[name] = True if not values else values[0] if len(values) == 1 else values
        name, equals, value = word.removeprefix("--").partition("=")
        values = [value] if equals else []
    return fields


def import_sd_scripts(fields: Mapping[str, Any]) -> Imported:
    """A recipe of sd-scripts' arguments. Sections of its TOML are only for the eye."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    off = {name: value for name, value in flat.items() if value is False and name in _OFF}
    # Any other flag that is off says what konomi does by itself.
    flat = {name: value for name, value in flat.items() if value is not False}
    flat = {name: value for name, value in flat.items() if value or name not in _NONE_IF_ZERO}
    kind = _method(flat, str(flat.pop("script", "")))
    found = Imported("sd-scripts", kind)
    found.apply(
        TABLE, {name: value for name, value in flat.items() if name != "unet_lr"}, handled=_HANDLED
    )
    found.apply(_OFF, off)
    if "unet_lr" in flat:
        found.apply(TABLE, {"unet_lr": flat["unet_lr"]})
    _sources(found, flat)
    _length(found, flat)
    if kind == "lora":
        _network(found, flat)
    else:
        found.apply(
            {},
            {name: flat[name] for name in flat if name.startswith("network_") and name in _HANDLED},
        )
    for old, name in (("use_8bit_adam", "adamw8bit"), ("use_lion_optimizer", "lion")):
        if old in flat:
            found.put(old, "optimizer.kind", name)
    if "min_snr_gamma" in flat:
        found.put("min_snr_gamma", "objective.weighting", "min_snr")
    if "debiased_estimation_loss" in flat:
        found.put("debiased_estimation_loss", "objective.weighting", "debiased")
    if not flat.get("enable_bucket") and not flat.get("dataset_config"):
        found.put("no enable_bucket", "data.buckets.kind", "fixed")
    if flat.get("random_crop"):
        # A crop that is cached is the same each time.
        found.put("random_crop", "data.cache.latents", "off")
    arguments = _pairs(flat.get("optimizer_args"))
    found.apply(
        _OPTIMIZER_ARGS,
        {name: value for name, value in arguments.items() if value.lower() != "false"},
    )
    return found


def _method(flat: Mapping[str, Any], script: str) -> str:
    if "token_string" in flat or "textual_inversion" in script:
        return "textual_inversion"
    if any(name.startswith("network_") for name in flat) or "network" in script:
        return "lora"
    return "dreambooth" if script.startswith("train_db") else "full"


def _sources(found: Imported, flat: Mapping[str, Any]) -> None:
    sources: list[dict[str, Any]] = []
    for name, role in (
        ("train_data_dir", "train"),
        ("dataset_config", "train"),
        ("reg_data_dir", "prior"),
    ):
        if flat.get(name):
            source = {"path": str(flat[name]), "role": role}
            if role == "train" and flat.get("token_string"):
                source["trigger"] = str(flat["token_string"])
            sources.append(source)
            found.taken.append(f"{name} -> data.sources = {flat[name]!r}")
    if sources:
        found.data.setdefault("data", {})["sources"] = sources
    if flat.get("output_dir"):
        folder = PurePosixPath(str(flat["output_dir"])) / str(flat.get("output_name") or "run")
        found.put("output_dir", "run.output", str(folder))


def _length(found: Imported, flat: Mapping[str, Any]) -> None:
    accumulation = whole(flat.get("gradient_accumulation_steps") or 1)
    batch = whole(flat.get("train_batch_size") or 1) * accumulation
    if "train_batch_size" in flat or accumulation > 1:
        # There, a batch is what one pass takes; here, what one step of the optimiser takes.
        found.put("train_batch_size x gradient_accumulation_steps", "run.batch_size", batch)
    if accumulation > 1:
        found.put("gradient_accumulation_steps", "memory.accumulation", accumulation)
    run = found.data.get("run", {})
    if run.get("epochs"):
        found.drop("run.steps", "max_train_epochs counts where both are given, as in sd-scripts")
    elif not run.get("steps") and flat.get(
        "epoch"
    ):  # The name in settings of its graphical surfaces.
        found.put("epoch", "run.epochs", whole(flat["epoch"]))
    elif not run.get("steps"):
        found.put("no max_train_steps (sd-scripts' default)", "run.steps", 1600)


def _network(found: Imported, flat: Mapping[str, Any]) -> None:
    module = str(flat.get("network_module") or "networks.lora")
    if module not in ("networks.lora", "lycoris.kohya"):
        found.leave("network_module", f"{module!r}: konomi trains a LoRA or LoCon in its place")
    # Their defaults: width 4 and alpha 1, which is not konomi's.
    rank, alpha = whole(flat.get("network_dim") or 4), float(flat.get("network_alpha") or 1)
    text = not switch(flat.get("network_train_unet_only", False))
    if not flat.get(
        "dim_from_weights"
    ):  # With it the file of network_weights decides, as method.start does.
        found.put("network_dim", "method.rank", rank)
        found.put("network_alpha", "method.alpha", alpha)
        if text:
            found.put("network_dim", "method.text_rank", rank)
            found.put("network_alpha", "method.text_alpha", alpha)
    if text and not flat.get("text_encoder_lr") and flat.get("learning_rate"):
        # There, the text encoder has the same rate; here, half of it.
        found.put("learning_rate", "optimizer.text_learning_rate", float(flat["learning_rate"]))
    if switch(flat.get("network_train_text_encoder_only", False)):
        found.leave("network_train_text_encoder_only", "konomi trains the denoiser in any case")
    arguments = _pairs(flat.get("network_args"))
    found.apply(_NETWORK_ARGS, arguments, handled=BLOCK_ARGUMENTS)
    import_blocks(found, arguments)
    if "conv_dim" in arguments and "conv_alpha" not in arguments:
        found.put("no conv_alpha (sd-scripts' default)", "method.conv_alpha", 1.0)


def _pairs(words: Any) -> dict[str, str]:
    """`["conv_dim=8", ...]` as a table."""
    listed = [words] if isinstance(words, str) else words if isinstance(words, list) else []
    return {
        name.strip(): value.strip()
        for name, _, value in (str(word).partition("=") for word in listed)
    }

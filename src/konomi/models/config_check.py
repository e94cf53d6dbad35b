"""The types and sizes of the settings of a base's configs, checked before anything is built of
them.

Bounds are those that no model comes near; beyond them a config is damaged or made to exhaust the
machine.
"""

from collections.abc import Callable, Mapping
from typing import Any

from konomi.errors import ModelError

Check = Callable[[object], bool]


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Check:
    def check(value: object) -> bool:
        # An integer of 400 digits is no float.
        return isinstance(value, int | float) and type(value) is not bool and low <= value <= high

    return check


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 200


def _switch(value: object) -> bool:
    return isinstance(value, bool)


def _list(item: Check, longest: int = 16, shortest: int = 1) -> Check:
    return lambda value: (
        isinstance(value, list) and shortest <= len(value) <= longest and all(map(item, value))
    )


def _or(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


_WIDTH = _whole(1, 1 << 15)
_COUNT = _whole(1, 256)
_DEPTH = _whole(0, 256)
_SIDE = _whole(1, 1 << 14)
_EPS = _number(0.0, 1.0)
_TOKEN = _whole(0, 1 << 24)
_LEVELS = _list(_WIDTH)
_BLOCKS = _list(_text)

_UNET: Mapping[str, Check] = {
    "sample_size": _SIDE, "in_channels": _whole(1, 256), "out_channels": _whole(1, 256),
    "block_out_channels": _LEVELS,
    "down_block_types": _BLOCKS, "up_block_types": _BLOCKS,
    "layers_per_block": _or(_COUNT, _list(_COUNT)),
    "attention_head_dim": _or(_WIDTH, _list(_WIDTH)),
    "num_attention_heads": _or(_WIDTH, _list(_WIDTH)),
    "transformer_layers_per_block": _or(_DEPTH, _list(_or(_DEPTH, _list(_DEPTH)))),
    "cross_attention_dim": _or(_WIDTH, _list(_WIDTH)), "norm_num_groups": _WIDTH, "norm_eps": _EPS,
    "use_linear_projection": _switch, "addition_time_embed_dim": _WIDTH,
    "projection_class_embeddings_input_dim": _WIDTH, "addition_embed_type": _text,
}  # fmt: skip
_VAE: Mapping[str, Check] = {
    "latent_channels": _whole(1, 256), "in_channels": _whole(1, 256),
    "out_channels": _whole(1, 256),
    "block_out_channels": _LEVELS, "down_block_types": _BLOCKS, "up_block_types": _BLOCKS,
    "layers_per_block": _COUNT,
    "norm_num_groups": _WIDTH, "scaling_factor": _number(1e-6, 1e6), "use_quant_conv": _switch,
    "use_post_quant_conv": _switch, "mid_block_add_attention": _switch,
}  # fmt: skip
_TEXT: Mapping[str, Check] = {
    "hidden_size": _WIDTH, "intermediate_size": _whole(1, 1 << 18), "num_hidden_layers": _COUNT,
    "num_attention_heads": _WIDTH, "vocab_size": _whole(1, 1 << 24),
    "max_position_embeddings": _whole(3, 1 << 14),
    "projection_dim": _WIDTH, "layer_norm_eps": _EPS, "hidden_act": _text, "bos_token_id": _TOKEN,
    "eos_token_id": _or(_TOKEN, _list(_TOKEN)), "pad_token_id": _TOKEN, "model_type": _text,
}  # fmt: skip
_SCHEDULER: Mapping[str, Check] = {
    "beta_start": _number(0.0, 1.0), "beta_end": _number(0.0, 1.0),
    "num_train_timesteps": _whole(1, 100_000),
    "beta_schedule": _text, "trained_betas": _list(_number(0.0, 1.0), 100_000),
    "prediction_type": _text,
    "rescale_betas_zero_snr": _switch, "timestep_spacing": _text, "set_alpha_to_one": _switch,
    "_class_name": _text,
}  # fmt: skip
_KNOWN = {
    "unet": _UNET,
    "vae": _VAE,
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "scheduler": _SCHEDULER,
}
_MUST: Mapping[str, tuple[str, ...]] = {
    "unet": (
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "cross_attention_dim",
        "sample_size",
    ),
    "vae": ("block_out_channels", "latent_channels"),
}


_MAY_BE_NULL = (
    "addition_embed_type", "addition_time_embed_dim", "num_attention_heads",
    "projection_class_embeddings_input_dim",
    "trained_betas",
)  # fmt: skip


def without_nulls(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A component's config without settings that are null where only their absence has a meaning:
    the default.
    """
    left_out = {s for s in _KNOWN[name] if s not in _MAY_BE_NULL and config.get(s, 0) is None}
    return {setting: value for setting, value in config.items() if setting not in left_out}


def check_configs(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ModelError naming the component, the setting and its value. What is None counts as
    left out.
    """
    for name, config in configs.items():
        for setting, check in _KNOWN[name].items():
            value = config.get(setting)
            if value is not None and not check(value):
                raise _wrong(name, setting, value)
        for setting in _MUST.get(name, ()):
            if config.get(setting) is None:
                raise ModelError(f"the config of {name} lacks {setting}.")
    unet = configs.get("unet", {})
    for setting in ("down_block_types", "up_block_types"):
        if unet and len(unet[setting]) != len(unet["block_out_channels"]):
            raise _wrong("unet", setting, unet[setting])


def _wrong(name: str, setting: str, value: object) -> ModelError:
    return ModelError(
        f"the config of {name} has {setting} = {short(value)}, which no model of this kind has."
    )


def short(value: object) -> str:
    """A value of unknown origin, for a message."""
    if isinstance(value, int) and abs(value) >= 10**30:
        # Python refuses to print very long ones.
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return (
            f"a list or table of {len(value)}"
            if len(value) > 8 or _is_deep(value)
            else repr(value)[:60]
        )
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_deep(value: list[Any] | dict[Any, Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return any(
        isinstance(item, list | dict) or (isinstance(item, int) and abs(item) >= 10**30)
        for item in items
    )

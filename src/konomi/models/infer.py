"""Configs of a single file's parts, from the shapes of its tensors.

What shapes cannot tell (number of heads, groups of the norms) is the published model's where
widths are its, and otherwise what the file says under `konomi.configs` or the family's rule.
"""

from collections.abc import Mapping
from typing import Any

from konomi.errors import ModelError
from konomi.families import published_config
from konomi.families.autoencoder import VAE_PREFIX
from konomi.families.family import Family, Shapes, TextEncoderSpec

DECLARED: Mapping[str, tuple[str, ...]] = {
    "unet": ("attention_head_dim", "norm_num_groups", "sample_size", "norm_eps", "act_fn"),
    "vae": ("norm_num_groups", "sample_size", "scaling_factor", "force_upcast", "act_fn"),
    "text_encoder": (
        "num_attention_heads", "num_hidden_layers", "hidden_act", "bos_token_id", "eos_token_id",
        "pad_token_id",
    ),
    "text_encoder_2": (
        "num_attention_heads", "num_hidden_layers", "hidden_act", "bos_token_id", "eos_token_id",
        "pad_token_id",
    ),
    "scheduler": (
        "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type",
        "rescale_betas_zero_snr",
        "timestep_spacing",
    ),
}  # fmt: skip
"""Settings that a file may state about itself."""


def infer_unet(
    family: Family, shapes: Shapes, declared: Mapping[str, Any], *, check: bool = True
) -> dict[str, Any]:
    """`UNet2DConditionModel`'s config from LDM names."""
    config = published_config(family, "unet")
    published = dict(config)
    table = _under(shapes, family.denoiser.file_prefix)
    levels = _levels(table)
    widths = [level["width"] for level in levels]
    attention = [level["depth"] > 0 for level in levels]
    counts = [level["resnets"] for level in levels]
    mid_depth = _depth(table, "middle_block.1")
    depths = [level["depth"] or 1 for level in levels]
    if not attention[-1]:
        depths[-1] = mid_depth
    config["in_channels"] = _shape(table, "input_blocks.0.0.weight")[1]
    config["out_channels"] = _shape(table, "out.2.weight")[0]
    config["block_out_channels"] = widths
    config["down_block_types"] = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention]
    config["up_block_types"] = [
        "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)
    ]
    config["layers_per_block"] = counts[0] if len(set(counts)) == 1 else counts
    if any(depth != 1 for depth in depths):
        config["transformer_layers_per_block"] = depths
    else:
        config.pop("transformer_layers_per_block", None)
    keys = [name for name in table if name.endswith("attn2.to_k.weight")]
    projections = [name for name in table if name.endswith(".proj_in.weight")]
    if not keys or not projections:
        raise ModelError("its UNet has no cross-attention, so it does not read text.")
    config["cross_attention_dim"] = table[keys[0]][1]
    config["use_linear_projection"] = len(table[projections[0]]) == 2
    if not config["use_linear_projection"] and "use_linear_projection" not in published:
        del config["use_linear_projection"]
    if family.denoiser.reads_sizes:
        config["projection_class_embeddings_input_dim"] = _shape(table, "label_emb.0.0.weight")[1]
    if widths != published["block_out_channels"]:
        per_level = isinstance(published["attention_head_dim"], list)
        config["attention_head_dim"] = [max(1, width // 64) for width in widths] if per_level else 8
    config.update({name: value for name, value in declared.items() if name in DECLARED["unet"]})
    if check:
        _check_groups(config, "UNet")
    return config


def infer_vae(
    family: Family,
    shapes: Shapes,
    declared: Mapping[str, Any],
    *,
    prefix: str = VAE_PREFIX,
    check: bool = True,
) -> dict[str, Any]:
    """`AutoencoderKL`'s config from LDM names."""
    config = published_config(family, "vae")
    table = _under(shapes, prefix)
    widths: list[int] = []
    layers = 0
    while f"encoder.down.{len(widths)}.block.0.conv1.weight" in table:
        level = len(widths)
        layers = _count(table, f"encoder.down.{level}.block")
        widths.append(_shape(table, f"encoder.down.{level}.block.0.conv1.weight")[0])
    if not widths:
        raise ModelError("its VAE is of a kind that konomi does not know.")
    config["block_out_channels"] = widths
    config["down_block_types"] = ["DownEncoderBlock2D"] * len(widths)
    config["up_block_types"] = ["UpDecoderBlock2D"] * len(widths)
    config["layers_per_block"] = layers
    config["latent_channels"] = _shape(table, "decoder.conv_in.weight")[1]
    config.update({name: value for name, value in declared.items() if name in DECLARED["vae"]})
    if check:
        _check_groups(config, "VAE")
    return config


def infer_text(
    family: Family, encoder: TextEncoderSpec, shapes: Shapes, declared: Mapping[str, Any]
) -> dict[str, Any]:
    """CLIP's text config from names in transformers' or OpenCLIP's layout."""
    config = published_config(family, encoder.part)
    width = config["hidden_size"]
    table = _under(shapes, encoder.file_prefix)
    if encoder.open_clip:
        tokens, positions = "token_embedding.weight", "positional_embedding"
        layers, inner = "transformer.resblocks", "mlp.c_fc.weight"
        if encoder.pooled:
            config["projection_dim"] = _shape(table, "text_projection")[1]
    else:
        table = {name.removeprefix("text_model."): shape for name, shape in table.items()}
        tokens, positions = (
            "embeddings.token_embedding.weight",
            "embeddings.position_embedding.weight",
        )
        layers, inner = "encoder.layers", "mlp.fc1.weight"
    config["vocab_size"], config["hidden_size"] = _shape(table, tokens)
    config["max_position_embeddings"] = _shape(table, positions)[0]
    config["intermediate_size"] = _shape(table, f"{layers}.0.{inner}")[0]
    held = _count(table, layers)
    used: int | None = config["num_hidden_layers"]
    if config["hidden_size"] != width:
        config["num_attention_heads"] = max(1, config["hidden_size"] // 64)
        used = None
    config.update(
        {name: value for name, value in declared.items() if name in DECLARED[encoder.part]}
    )
    used = declared.get("num_hidden_layers", used)
    # What is no whole number stays as it is, and is refused with whatever else is odd.
    if used is None or isinstance(used, int):
        config["num_hidden_layers"] = num_layers(encoder, held, used)
    return config


def num_layers(encoder: TextEncoderSpec, held: int, used: int | None) -> int:
    """Layers that a text encoder has in diffusers' sense, for a file that holds `held` of them.

    LDM reads a fixed layer of a fixed architecture (the last but one of OpenCLIP-H's 24), whatever
    a file holds besides. `used` is how many layers that architecture counts here (23 there, where
    the 24th is never read), None if unknown. A file may lack those at the end that nothing reads:
    `missing_layers` of them are made up by `SingleFileSource`.
    """
    if used is None:
        return max(held - encoder.file_extra_layers, 0)
    if held >= used or encoder.pooled or used - held <= encoder.unread_layers:
        return used
    return held


def time_embedding_width(unet: Mapping[str, Any], pooled_width: int) -> int:
    """Width in which each of the six sizes is embedded."""
    return (int(unet["projection_class_embeddings_input_dim"]) - pooled_width) // 6


def _levels(table: Shapes) -> list[dict[str, int]]:
    """Width, number of resnets and depth of the transformers of each resolution."""
    levels = [{"width": 0, "resnets": 0, "depth": 0}]
    for index in range(1, len(table)):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in table:
            levels.append({"width": 0, "resnets": 0, "depth": 0})
        elif f"{block}.0.out_layers.3.weight" in table:
            levels[-1]["width"] = table[f"{block}.0.out_layers.3.weight"][0]
            levels[-1]["resnets"] += 1
            levels[-1]["depth"] = max(levels[-1]["depth"], _depth(table, f"{block}.1"))
        else:
            break
    if any(level["resnets"] == 0 for level in levels):
        raise ModelError("its UNet is incomplete, or of a kind that konomi does not know.")
    return levels


def _depth(table: Shapes, transformer: str) -> int:
    return _count(table, f"{transformer}.transformer_blocks")


def _count(table: Shapes, stem: str) -> int:
    """How many numbered children a module list has."""
    numbers = {
        name[len(stem) + 1 :].partition(".")[0] for name in table if name.startswith(f"{stem}.")
    }
    return len({number for number in numbers if number.isdigit()})


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _shape(
    table: Shapes,
    name: str,
) -> tuple[int, ...]:
    shape = table.get(name)
    if shape is None:
        raise ModelError(f"the tensor {name} is missing, so this is not a complete model.")
    if len(shape) < 2:
        raise ModelError(f"the tensor {name} has the impossible shape {list(shape)}.")
    return shape


def _check_groups(config: Mapping[str, Any], what: str) -> None:
    groups = config["norm_num_groups"]
    if (
        not isinstance(groups, int)
        or groups < 1
        or any(width % groups for width in config["block_out_channels"])
    ):
        raise ModelError(
            f"its {what} has widths {config['block_out_channels']}, which {groups} groups do not "
            "divide, and it does not say its own number. Use it as a diffusers folder."
        )

"""What a base's files hold and konomi does not use, in a line each: tensors of a single file,
settings of a folder.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch

from konomi.diffusion.noise import NoiseSchedule
from konomi.errors import printable, shortened
from konomi.families.autoencoder import VAE_PREFIX
from konomi.families.family import Family
from konomi.models.prediction import V_MARKER, ZERO_SNR_MARKER
from konomi.models.tensor_files import TensorFile

_SCHEDULE = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights|logvar"
    r"|denoiser\.sigmas)"
)
"""Buffers of LDM's noise process, which follow from its settings."""
_BUFFER = re.compile(r"(.*\.)?(position_ids|attn_mask)")
_KEPT_BACK = ("logit_scale", "text_projection")
"""Of OpenCLIP, read by nothing here but written again for other tools."""
_KINDS: tuple[tuple[str, str], ...] = (
    (r"model_ema\.", "running averages of the UNet (model_ema)"),
    (
        r"lora_|.*\.lora_(up|down|A|B)\.|.*\.(hada|lokr)_",
        "a LoRA beside the model, which is not applied",
    ),
    (r"control_model\.", "a ControlNet (control_model)"),
    (rf"{VAE_PREFIX}loss\.", f"what trained the VAE ({VAE_PREFIX}loss)"),
    (r"(optimizer|state)\.", "an optimiser's state"),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNET_SETTINGS = _words("""
    act_fn addition_embed_type addition_embed_type_num_heads addition_time_embed_dim
    attention_head_dim attention_type
    block_out_channels center_input_sample class_embed_type class_embeddings_concat conv_in_kernel
    conv_out_kernel
    cross_attention_dim cross_attention_norm down_block_types downsample_padding dropout
    dual_cross_attention
    encoder_hid_dim encoder_hid_dim_type flip_sin_to_cos freq_shift in_channels layers_per_block
    mid_block_only_cross_attention mid_block_scale_factor mid_block_type norm_eps norm_num_groups
    num_attention_heads
    num_class_embeds only_cross_attention out_channels projection_class_embeddings_input_dim
    resnet_out_scale_factor
    resnet_skip_time_act resnet_time_scale_shift reverse_transformer_layers_per_block sample_size
    time_cond_proj_dim
    time_embedding_act_fn time_embedding_dim time_embedding_type timestep_post_act
    transformer_layers_per_block
    up_block_types upcast_attention use_linear_projection
""")
_VAE_SETTINGS = _words("""
    act_fn block_out_channels double_z down_block_types force_upcast in_channels latent_channels
    latents_mean
    latents_std layers_per_block mid_block_add_attention norm_num_groups norm_type out_channels
    sample_size
    scaling_factor shift_factor up_block_types use_post_quant_conv use_quant_conv
""")
_TEXT_SETTINGS = _words("""
    attention_dropout bos_token_id dropout eos_token_id gradient_checkpointing hidden_act
    hidden_size
    initializer_factor initializer_range intermediate_size layer_norm_eps max_position_embeddings
    model_type
    num_attention_heads num_hidden_layers pad_token_id projection_dim vocab_size
    add_cross_attention architectures auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id
    forced_eos_token_id id2label is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states
    output_scores prefix problem_type pruned_heads remove_invalid_values repetition_penalty
    return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version
    typical_p use_bfloat16
""")
"""CLIP's, and what transformers once wrote into every config."""
_NOT_APPLIED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "vae": {"latents_mean": (None,), "latents_std": (None,), "shift_factor": (None, 0, 0.0)},
    "text": {"attention_dropout": (0, 0.0), "dropout": (0, 0.0)},
    "scheduler": {"clip_sample": (None, False), "thresholding": (None, False)},
}
"""Known settings that change nothing here, and the values with which they would change nothing
elsewhere."""


def unused_tensors(
    file: TensorFile, family: Family, configs: Mapping[str, Any], used: Collection[str]
) -> list[str]:
    """A line that names the tensors of a single file that are neither `used` nor follow from
    others, or none.
    """
    left = [
        name for name in file.shapes if name not in used and not _expected(name, family, configs)
    ]
    if not left:
        return []
    kinds = Counter(_kind(name) for name in left)
    said = [f"{count} of {printable(kind)}" for kind, count in kinds.most_common(4)]
    rest = len(left) - sum(count for _, count in kinds.most_common(4))
    said += [f"{rest} more"] if rest else []
    return [f"{len(left)} tensors are not used: {', '.join(said)}."]


def other_schedule(file: TensorFile, schedule: NoiseSchedule) -> list[str]:
    """A line where the file's own `alphas_cumprod` are not those of the noise process in use."""
    if file.shapes.get("alphas_cumprod") is None:
        return []
    own = file.read(["alphas_cumprod"])["alphas_cumprod"]
    tolerance = 1e-4 if own.dtype in (torch.float32, torch.float64) else 1e-2
    if own.shape == schedule.alphas_cumprod.shape and bool(
        ((own.float() - schedule.alphas_cumprod).abs() < tolerance).all()
    ):
        return []
    return [
        "its alphas_cumprod are those of another noise process; the one that its kind of model has "
        "is used."
    ]


def unused_settings(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each config of a diffusers folder that says what is not applied."""
    known = {"unet": _UNET_SETTINGS, "vae": _VAE_SETTINGS, "text": _TEXT_SETTINGS}
    lines = []
    for name, config in configs.items():
        kind = "text" if name.startswith("text") else name
        odd = [
            s for s in config if kind in known and s not in known[kind] and not s.startswith("_")
        ]
        odd += [
            s
            for s, plain in _NOT_APPLIED.get(kind, {}).items()
            if s in config and config[s] not in plain
        ]
        if config.get("timestep_spacing") == "trailing" and not config.get(
            "rescale_betas_zero_snr"
        ):
            odd.append("timestep_spacing")
        if odd:
            said = ", ".join(f"{setting} = {shortened(config[setting], 40)}" for setting in odd[:6])
            more = f" and {len(odd) - 6} more" if len(odd) > 6 else ""
            lines.append(
                printable(f"the config of {name} has settings that are not used: {said}{more}.")
            )
    return lines


def _kind(name: str) -> str:
    for pattern, kind in _KINDS:
        if re.match(pattern, name):
            return kind
    head = name.split(".")
    # Numbers aside, what stands before the last name:
    # `cond_stage_model.model.transformer.resblocks.24`.
    return ".".join(head[: max(1, min(len(head) - 1, 5))])[:80]


def _expected(name: str, family: Family, configs: Mapping[str, Any]) -> bool:
    """Whether a tensor that no module takes tells nothing that is lost."""
    if name in (V_MARKER, ZERO_SNR_MARKER) or _SCHEDULE.fullmatch(name) or _BUFFER.fullmatch(name):
        return True
    for encoder in family.text_encoders:
        if encoder.open_clip and name.startswith(encoder.file_prefix):
            inner = name[len(encoder.file_prefix) :]
            layer = re.match(r"transformer\.resblocks\.(\d+)\.", inner)
            last = int(configs[encoder.part]["num_hidden_layers"]) + encoder.file_extra_layers
            # The layer beyond those used is in every file of such a family, and written again.
            return inner in _KEPT_BACK or (layer is not None and int(layer[1]) < last)
    return False

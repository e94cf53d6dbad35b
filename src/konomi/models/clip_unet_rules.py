"""What is known of the configs of a U-Net, an `AutoencoderKL` and a CLIP text encoder: diffusers'
and transformers' settings.
"""

from konomi.errors import ModelError
from konomi.families.family import Family, PartSpec, TextEncoderSpec, VaeSpec
from konomi.models.architecture import ConfigRules, Configs
from konomi.models.config_check import any_of, list_of, number, odd_setting, switch, text, whole

_OTHER_INPUTS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an image-editing model (InstructPix2Pix)",
}
"""Channels that a U-Net takes -> what it is."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WIDTH = whole(1, 1 << 15)
_COUNT = whole(1, 256)
_DEPTH = whole(0, 256)
_SIDE = whole(1, 1 << 14)
_EPS = number(0.0, 1.0)
_TOKEN = whole(0, 1 << 24)
_LEVELS = list_of(_WIDTH)
_BLOCKS = list_of(text)

UNET = ConfigRules(
    checks={
        "sample_size": _SIDE, "in_channels": whole(1, 256), "out_channels": whole(1, 256),
        "block_out_channels": _LEVELS,
        "down_block_types": _BLOCKS, "up_block_types": _BLOCKS,
        "layers_per_block": any_of(_COUNT, list_of(_COUNT)),
        "attention_head_dim": any_of(_WIDTH, list_of(_WIDTH)),
        "num_attention_heads": any_of(_WIDTH, list_of(_WIDTH)),
        "transformer_layers_per_block": any_of(_DEPTH, list_of(any_of(_DEPTH, list_of(_DEPTH)))),
        "cross_attention_dim": any_of(_WIDTH, list_of(_WIDTH)), "norm_num_groups": _WIDTH,
        "norm_eps": _EPS,
        "use_linear_projection": switch, "addition_time_embed_dim": _WIDTH,
        "projection_class_embeddings_input_dim": _WIDTH, "addition_embed_type": text,
    },
    required=(
        "block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim",
        "sample_size",
    ),
    nullable=(
        "addition_embed_type", "addition_time_embed_dim", "num_attention_heads",
        "projection_class_embeddings_input_dim",
    ),
    known=_words("""
        act_fn addition_embed_type addition_embed_type_num_heads addition_time_embed_dim
        attention_head_dim attention_type block_out_channels center_input_sample
        class_embed_type class_embeddings_concat conv_in_kernel conv_out_kernel
        cross_attention_dim cross_attention_norm down_block_types downsample_padding dropout
        dual_cross_attention encoder_hid_dim encoder_hid_dim_type flip_sin_to_cos freq_shift
        in_channels layers_per_block mid_block_only_cross_attention mid_block_scale_factor
        mid_block_type norm_eps norm_num_groups num_attention_heads num_class_embeds
        only_cross_attention out_channels projection_class_embeddings_input_dim
        resnet_out_scale_factor resnet_skip_time_act resnet_time_scale_shift
        reverse_transformer_layers_per_block sample_size time_cond_proj_dim
        time_embedding_act_fn time_embedding_dim time_embedding_type timestep_post_act
        transformer_layers_per_block up_block_types upcast_attention use_linear_projection
    """),
)  # fmt: skip
VAE = ConfigRules(
    checks={
        "latent_channels": whole(1, 256), "in_channels": whole(1, 256),
        "out_channels": whole(1, 256),
        "block_out_channels": _LEVELS, "down_block_types": _BLOCKS, "up_block_types": _BLOCKS,
        "layers_per_block": _COUNT,
        "norm_num_groups": _WIDTH, "scaling_factor": number(1e-6, 1e6), "use_quant_conv": switch,
        "use_post_quant_conv": switch, "mid_block_add_attention": switch,
    },
    required=("block_out_channels", "latent_channels"),
    known=_words("""
        act_fn block_out_channels double_z down_block_types force_upcast in_channels
        latent_channels latents_mean latents_std layers_per_block mid_block_add_attention
        norm_num_groups norm_type out_channels sample_size scaling_factor shift_factor
        up_block_types use_post_quant_conv use_quant_conv
    """),
    neutral={"latents_mean": (None,), "latents_std": (None,), "shift_factor": (None, 0, 0.0)},
)  # fmt: skip
CLIP_TEXT = ConfigRules(
    checks={
        "hidden_size": _WIDTH, "intermediate_size": whole(1, 1 << 18), "num_hidden_layers": _COUNT,
        "num_attention_heads": _WIDTH, "vocab_size": whole(1, 1 << 24),
        "max_position_embeddings": whole(3, 1 << 14),
        "projection_dim": _WIDTH, "layer_norm_eps": _EPS, "hidden_act": text,
        "bos_token_id": _TOKEN,
        "eos_token_id": any_of(_TOKEN, list_of(_TOKEN)), "pad_token_id": _TOKEN, "model_type": text,
    },
    nullable=("num_attention_heads",),
    known=_words("""
        attention_dropout bos_token_id dropout eos_token_id gradient_checkpointing hidden_act
        hidden_size initializer_factor initializer_range intermediate_size layer_norm_eps
        max_position_embeddings model_type num_attention_heads num_hidden_layers pad_token_id
        projection_dim vocab_size add_cross_attention architectures auto_map bad_words_ids
        begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
        decoder_start_token_id diversity_penalty do_sample dtype early_stopping
        encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
        forced_bos_token_id forced_eos_token_id id2label is_decoder is_encoder_decoder label2id
        length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
        num_return_sequences output_attentions output_hidden_states output_scores prefix
        problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
        return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
        tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
        torch_dtype torchscript transformers_version typical_p use_bfloat16
    """),
    neutral={"attention_dropout": (0, 0.0), "dropout": (0, 0.0)},
)  # fmt: skip
"""CLIP's settings, and what transformers once wrote into every config."""


def rules_of(spec: PartSpec) -> ConfigRules:
    """What is known of a part's config."""
    if isinstance(spec, TextEncoderSpec):
        return CLIP_TEXT
    return VAE if isinstance(spec, VaeSpec) else UNET


def check_together(family: Family, configs: Configs) -> None:
    """Raises ModelError where a U-Net has lists of different lengths, or reads something else than
    noisy latents or, for inpainting, these beside a mask and the masked image's latents.
    """
    folder = family.denoiser.folder
    unet = configs.get(folder)
    if unet is None:
        return
    for setting in ("down_block_types", "up_block_types"):
        if len(unet[setting]) != len(unet["block_out_channels"]):
            raise odd_setting(folder, setting, unet[setting])
    channels, latent = unet["in_channels"], configs[family.vae.folder]["latent_channels"]
    if channels not in (latent, 2 * latent + 1):
        what = _OTHER_INPUTS.get(channels, "a model of another kind")
        raise ModelError(f"its UNet takes {channels} channels: {what}, which konomi does not read.")

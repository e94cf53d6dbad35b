"""Files that are no LoRA for a family that konomi knows: which family or kind of update they are,
by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from konomi.families import FAMILIES
from konomi.families.family import DENOISER
from konomi.families.foreign_names import part_of_folder
from konomi.formats.kohya_keys import key_of
from konomi.formats.layers import BEGINNINGS, part_of, split_name

_UNET = re.compile(
    r"(?:^|[._])(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]"
)
"""What only U-Nets have."""
_FAMILIES: tuple[tuple[str, str], ...] = (
    ("FLUX.2",
    r"double_stream_modulation|single_stream_modulation|attn_to_qkv_mlp_proj|ff_linear_in"),
    ("FLUX.3", r"content_mode_blocks|txt_mode_blocks|mode_blocks_(image|txt)"),
    ("Chroma", r"distilled_guidance_layer"),
    ("HiDream", r"double_stream_blocks_\d+_block|single_stream_blocks_\d+_block"),
    ("Hunyuan", r"individual_token_refiner|txt_in_c_embedder|byt5_in"),
    ("AuraFlow", r"joint_transformer_(layers|blocks)|single_transformer_layers"),
    ("FLUX", r"double_blocks_\d+_(img|txt)_(attn|mlp|mod)|single_blocks_\d+_(linear[12]|modulation)"
             r"|single_transformer_blocks_\d+"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)"),
    ("SD3", r"joint_blocks_\d+_(x|context)_block"
            r"|transformer_blocks_\d+_(attn2?_(add_[qkv]_proj|to_add_out)|ff_context)"),
    ("Krea 2", r"blocks_\d+_attn_(w[qkvo]|gate)|txtfusion|text_fusion"),
    ("Anima",
    r"llm_adapter|blocks_\d+_adaln_modulation|text_conditioner|blocks_\d+_(self|cross)_attn_[qkv]_proj"
              r"|qwen3_06b"),
    ("Wan", r"blocks_\d+_(self|cross)_attn_(q|k|v|o|k_img|v_img)(_|$)|blocks_\d+_ffn_[02]"),
    ("Ideogram", r"conditional_transformer|layers_\d+_adaln_modulation"),
    ("Lumina 2", r"layers_\d+_attn_to_[qkv]|layers_\d+_feed_forward_linear_[123]"),
    ("Z-Image", r"noise_refiner|context_refiner"
                r"|layers_\d+_(attention_(qkv|out|to_[qkv])|adaLN_modulation|feed_forward)"),
    ("Stable Cascade", r"lora_prior_|down_blocks_\d+_\d+_channelwise"),
    ("Sana", r"transformer_blocks_\d+_ff_conv_(inverted|depth|point)"),
    ("PixArt", r"adaln_single|caption_projection"),
    ("a transformer family (SD3, FLUX, Qwen-Image ...)",
    r"(^|transformer_)transformer_blocks_\d+_"),
    ("SD3 or FLUX (its third text encoder)",
     r"^(lora_te3_|text_encoder_3_|text_encoders_t5)|encoder_block_\d+_layer_\d+_"),
    ("a family with a language model for its text",
     r"(text_encoders_(qwen|gemma|mistral|llama)|model_layers_\d+_self_attn)"),
)  # fmt: skip
_BY_NAME = tuple((family, re.compile(pattern)) for family, pattern in _FAMILIES)
_BY_METADATA = (
    ("flux-2", "FLUX.2"), ("flux2", "FLUX.2"), ("flux.2", "FLUX.2"), ("flux-3", "FLUX.3"),
    ("flux3", "FLUX.3"),
    ("chroma", "Chroma"), ("flux", "FLUX.1"), ("stable-diffusion-3", "SD3"),
    ("stable-diffusion-v3", "SD3"),
    ("sd3", "SD3"), ("zimage", "Z-Image"), ("z_image", "Z-Image"), ("z-image", "Z-Image"),
    ("qwen", "Qwen-Image"),
    ("krea", "Krea 2"), ("anima", "Anima"), ("cosmos", "Cosmos"), ("lumina", "Lumina 2"),
    ("hidream", "HiDream"),
    ("wan", "Wan"), ("hunyuan", "Hunyuan"), ("ltx", "LTX-Video"), ("sana", "Sana"),
    ("pixart", "PixArt"),
    ("ideogram", "Ideogram"), ("auraflow", "AuraFlow"), ("stable-cascade", "Stable Cascade"),
    ("kolors", "Kolors"),
)  # fmt: skip
_WIDTHS = {3840: "Z-Image", 2304: "Lumina 2", 4608: "Ideogram"}
"""Of families whose layers have the same names."""
_KINDS = (
    (r"oft_(blocks|diag|r|R|s|L|rescale)", "OFT (orthogonal fine-tuning)"),
    (r"boft_(R|s|P)", "BOFT (butterfly orthogonal fine-tuning)"),
    (r"[ab][12]\.weight|glora_\w+", "GLoRA"),
    (r"vera_lambda_[bd]|vera_[AB]", "VeRA"),
    (r"randlora_\w+", "RandLoRA"),
    (r"hra_u", "HRA"),
    (r"fourierft_spectrum", "FourierFT"),
    (r"vblora_\w+", "VB-LoRA"),
    (r"bone_block|miss_block", "MiSS (Bone)"),
    (r"ia3_l", "PEFT's (IA)^3"),
    (r"lora_E|ranknum", "AdaLoRA"),
    (r"lora_embedding_[AB]", "a LoRA of the token table"),
    (r"shira_weight", "SHiRA"),
    (r"c3a_kernel", "C3A"),
    (r"road_(theta|alpha)", "RoAd"),
    (r"delora_lambda", "DeLoRA"),
    (r"poly_lora_[AB]", "Poly"),
    (r"lora_diag", "KaSA"),
    (r"loha_\w+", "an unknown spelling of LoHa"),
    (r"hydra\w*|lora_route\w*|moe_\w+", "a mixture of LoRAs"),
)
_OTHER_KINDS = tuple(
    (re.compile(rf"(?:^|.*[._])(?P<part>{pattern})(?:\.[^.]+)?(?:\.weight)?"), kind)
    for pattern, kind in _KINDS
)
_UPDATE = re.compile(
    rf"(?:^|[._])(?:{'|'.join(BEGINNINGS)}|(?:lycoris|dora|oft|boft|glora|vera|hra|ia3)_)"
)
_LONGEST = 1000


def other_family(
    names: Collection[str], metadata: Mapping[str, str], widths: Collection[int] = ()
) -> str:
    """The family that names of layers, or else the metadata, tell, where it is none of konomi's;
    "" otherwise.
    """
    flat = [name[:_LONGEST].replace(".", "_") for name in names]
    if any(_UNET.search(name[:_LONGEST]) for name in names) or _of_known_denoiser(names):
        return ""
    declared = other_by_metadata(metadata)
    for family, pattern in _BY_NAME:
        if any(pattern.search(name) for name in flat):
            if family == "Z-Image":
                family = next((_WIDTHS[width] for width in widths if width in _WIDTHS), family)
            # FLUX.1, Kontext and HunyuanImage have layers of the same names.
            return declared or family
    return declared


def _of_known_denoiser(names: Collection[str]) -> bool:
    """Whether a layer is one that the denoiser of one of konomi's families alone has."""
    own = [family.own_keys for family in FAMILIES if family.own_keys is not None]
    folders = {f"{folder}.": part for folder, part in part_of_folder().items()}
    for name in names:
        split = split_name(name[:_LONGEST])
        if split is None:
            continue
        layer = split[0]
        folder = next((folder for folder in folders if layer.startswith(folder)), "")
        key = f"{folders[folder]}.{layer[len(folder) :]}" if folder else key_of(layer) or ""
        if key.startswith(f"{DENOISER}.") and any(pattern.fullmatch(key) for pattern in own):
            return True
    return False


def other_by_metadata(metadata: Mapping[str, str]) -> str:
    """The same by `modelspec.architecture` and `ss_base_model_version` alone."""
    for entry in ("modelspec.architecture", "ss_base_model_version"):
        value = metadata.get(entry, "").lower()
        for beginning, family in _BY_METADATA:
            if value.startswith(beginning):
                return family
    return ""


def other_kind(names: Collection[str]) -> tuple[str, str]:
    """(tensor, kind of update) where the file holds a kind that konomi does not apply; ("", "")
    otherwise.
    """
    for name in names:
        for pattern, kind in _OTHER_KINDS:
            match = pattern.fullmatch(name) if len(name) <= _LONGEST else None
            if match and not part_of(match["part"]):
                return name, kind
    return "", ""


def holds_updates(names: Collection[str]) -> bool:
    """Whether any tensor is named as part of a LoRA or one of its relatives."""
    return any(split_name(name) or _UPDATE.search(name[:_LONGEST]) for name in names)

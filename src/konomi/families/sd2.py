"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 without its last layer; epsilon at 512 pixels or v at
768.

The two predictions have the same tensors. A single file therefore has to be told apart by what
stands beside them: see `konomi.models.load.load_base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from konomi.families import autoencoder, clip, unet
from konomi.families.family import Family, Pipeline, Shapes, TextEncoderSpec, Variant


def recognise_single_file(shapes: Shapes) -> bool:
    """OpenCLIP in its own layout beside a UNet without size conditioning."""
    sizes = f"{unet.UNET_PREFIX}label_emb.0.0.weight" in shapes
    return (
        unet.holds_unet(shapes)
        and not sizes
        and any(name.startswith("cond_stage_model.model.") for name in shapes)
    )


def recognise_folder(config: Mapping[str, Any], folders: frozenset[str]) -> bool:
    """Transformers with linear projections around them."""
    second = "text_encoder_2" in folders
    return (
        not second
        and not config.get("addition_embed_type")
        and bool(config.get("use_linear_projection", False))
    )


def recognise_metadata(metadata: Mapping[str, str]) -> bool:
    """kohya's or ModelSpec's words."""
    version, architecture = (
        metadata.get("ss_base_model_version", ""),
        metadata.get("modelspec.architecture", ""),
    )
    return (
        metadata.get("ss_v2") == "True"
        or version.startswith("sd_v2")
        or "stable-diffusion-v2" in architecture
    )


SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2",
    architecture=unet.ARCHITECTURE,
    denoiser=unet.unet(
        context_width=1024,
        linear_projections=True,
        block_lists=(
            unet.numbered_blocks((1, 2, 4, 5, 7, 8), tuple(range(3, 12))),
            unet.numbered_blocks(tuple(range(12)), tuple(range(12))),
        ),
    ),
    text_encoders=(
        TextEncoderSpec(
            part="text_encoder",
            class_name="CLIPTextModel",
            model_type=clip.MODEL_TYPE,
            tokenizer="tokenizer",
            tokenizer_class=clip.TOKENIZER_CLASS,
            max_length=clip.MAX_LENGTH,
            pad_token="!",
            width=1024,
            selectors=clip.SELECTORS,
            path_words=clip.PATH_WORDS,
            inner_layers=clip.INNER_LAYERS,
            numbered_layers=clip.NUMBERED_LAYERS,
            token_embedding=clip.TOKEN_EMBEDDING,
            file_prefix="cond_stage_model.model.",
            open_clip=True,
            file_extra_layers=1,  # The last of 24.
            kohya_prefix="lora_te",
            comfyui_name="clip_h",
            clip="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            embedding_name="emb_params",
        ),
    ),
    vae=autoencoder.autoencoder_kl(latent_scale=0.18215),
    variants=(
        Variant(
            prediction="v",
            resolution=768,
            architecture="stable-diffusion-v2-768-v",
            base_model_version="sd_v2_v",
        ),
        Variant(
            prediction="epsilon",
            resolution=512,
            architecture="stable-diffusion-v2-512",
            base_model_version="sd_v2",
            global_steps=(875000,),
        ),
    ),
    recognise_single_file=recognise_single_file,
    recognise_folder=recognise_folder,
    recognise_metadata=recognise_metadata,
    ss_v2=True,
    implementation="https://github.com/CompVis/stable-diffusion",
    has_readers=True,
    pipeline=Pipeline(
        class_name="StableDiffusionPipeline",
        inpaint_class_name="StableDiffusionInpaintPipeline",
        entries={"safety_checker": [None, None], "requires_safety_checker": False},
    ),
    memory=((7, "LoRA"), (20, "everything")),
    random_configs={
        "unet": {
            **unet.SMALL,
            **unet.SMALL_LEVELS,
            "attention_head_dim": [2, 4, 4],
            "cross_attention_dim": 32,
        },
        "vae": autoencoder.SMALL,
        "text_encoder": clip.SMALL,
    },
)

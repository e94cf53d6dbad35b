"""Stable Diffusion XL: CLIP ViT-L and OpenCLIP ViT-bigG side by side, pooled text and sizes, 1024
pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from konomi.families import autoencoder, clip, unet
from konomi.families.family import Family, Pipeline, Shapes, TextEncoderSpec, Variant


def recognise_single_file(shapes: Shapes) -> bool:
    """A UNet with size conditioning, and two text encoders (the refiner has one)."""
    sizes = f"{unet.UNET_PREFIX}label_emb.0.0.weight" in shapes
    return (
        unet.holds_unet(shapes)
        and sizes
        and any(name.startswith("conditioner.embedders.1.model.") for name in shapes)
    )


def recognise_folder(config: Mapping[str, Any], folders: frozenset[str]) -> bool:
    """A UNet that reads text and time ids, and two text encoders."""
    return "text_encoder_2" in folders and config.get("addition_embed_type") == "text_time"


def recognise_metadata(metadata: Mapping[str, str]) -> bool:
    """kohya's or ModelSpec's words."""
    version, architecture = (
        metadata.get("ss_base_model_version", ""),
        metadata.get("modelspec.architecture", ""),
    )
    return version.startswith("sdxl_") or "stable-diffusion-xl" in architecture


SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    architecture=unet.ARCHITECTURE,
    denoiser=unet.unet(
        context_width=2048,
        linear_projections=True,
        block_lists=(
            unet.numbered_blocks((4, 5, 7, 8), tuple(range(6))),
            unet.numbered_blocks(tuple(range(9)), tuple(range(9))),
        ),
        kohya_original_names=True,
        reads_sizes=True,
    ),
    text_encoders=(
        clip.clip_vit_l(
            file_prefix="conditioner.embedders.0.transformer.",
            kohya_prefix="lora_te1",
            embedding_name="clip_l",
            layer=2,
            final_norm=False,
        ),
        TextEncoderSpec(
            part="text_encoder_2",
            class_name="CLIPTextModelWithProjection",
            model_type=clip.MODEL_TYPE,
            tokenizer="tokenizer_2",
            tokenizer_class=clip.TOKENIZER_CLASS,
            max_length=clip.MAX_LENGTH,
            pad_token="!",
            width=1280,
            selectors=clip.SELECTORS,
            path_words=clip.PATH_WORDS,
            inner_layers=clip.INNER_LAYERS,
            numbered_layers=clip.NUMBERED_LAYERS,
            token_embedding=clip.TOKEN_EMBEDDING,
            file_prefix="conditioner.embedders.1.model.",
            open_clip=True,
            pooled=True,
            layer=2,
            final_norm=False,
            kohya_prefix="lora_te2",
            comfyui_name="clip_g",
            clip="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
            embedding_name="clip_g",
        ),
    ),
    vae=autoencoder.autoencoder_kl(latent_scale=0.13025, float32=True),
    variants=tuple(
        Variant(
            prediction=prediction,
            resolution=1024,
            architecture="stable-diffusion-xl-v1-base",
            base_model_version="sdxl_base_v1-0",
        )
        for prediction in ("epsilon", "v")
    ),
    recognise_single_file=recognise_single_file,
    recognise_folder=recognise_folder,
    recognise_metadata=recognise_metadata,
    # A second text encoder, and more than one transformer block in one place.
    own_keys=re.compile(
        r"text_encoder_2\..+|denoiser\..*\.attentions\..*\.transformer_blocks\.[1-9]\d*\..+"
    ),
    implementation="https://github.com/Stability-AI/generative-models",
    has_readers=True,
    pipeline=Pipeline(
        class_name="StableDiffusionXLPipeline",
        inpaint_class_name="StableDiffusionXLInpaintPipeline",
        entries={"image_encoder": [None, None], "force_zeros_for_empty_prompt": True},
        inpaint_entries={"requires_aesthetics_score": False},
    ),
    zero_empty_negative=True,
    relatives=(
        (
            r"^conditioner\.embedders\.0\.model\.",
            "the SDXL refiner, which konomi does not train. Take the SDXL base",
        ),
    ),
    memory=(
        (7, "LoRA with gradient checkpointing"),
        (11, "LoRA"),
        (20, "LoRA in large batches"),
        (48, "full fine-tuning"),
    ),
    random_configs={
        "unet": {
            **unet.SMALL,
            "attention_head_dim": [2, 2, 4],
            "transformer_layers_per_block": [1, 1, 2],
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        },
        "vae": autoencoder.SMALL,
        "text_encoder": clip.SMALL,
        "text_encoder_2": clip.SMALL,
    },
)

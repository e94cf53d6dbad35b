"""Stable Diffusion 1.x: one CLIP ViT-L/14 text encoder, epsilon prediction, 512 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from konomi.families import autoencoder, clip, unet
from konomi.families.family import Family, Pipeline, Shapes, Variant

ARCHITECTURE = "stable-diffusion-v1"


def recognise_single_file(shapes: Shapes) -> bool:
    """CLIP in transformers' layout beside a UNet without size conditioning."""
    sizes = f"{unet.UNET_PREFIX}label_emb.0.0.weight" in shapes
    return (
        unet.holds_unet(shapes)
        and not sizes
        and any(name.startswith("cond_stage_model.transformer.") for name in shapes)
    )


def recognise_folder(config: Mapping[str, Any], folders: frozenset[str]) -> bool:
    """Transformers with 1x1 convolutions around them."""
    second = "text_encoder_2" in folders
    return (
        not second
        and not config.get("addition_embed_type")
        and not config.get("use_linear_projection", False)
    )


def recognise_metadata(metadata: Mapping[str, str]) -> bool:
    """kohya's or ModelSpec's words; files of kohya's that are no other family's, as A1111 reads
    them.
    """
    version, architecture = (
        metadata.get("ss_base_model_version", ""),
        metadata.get("modelspec.architecture", ""),
    )
    return (
        version.startswith("sd_v1")
        or ARCHITECTURE in architecture
        or metadata.get("ss_v2") == "False"
    )


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    architecture=unet.ARCHITECTURE,
    denoiser=unet.unet(
        context_width=768,
        linear_projections=False,
        block_lists=(
            unet.numbered_blocks((1, 2, 4, 5, 7, 8), tuple(range(3, 12))),
            unet.numbered_blocks(tuple(range(12)), tuple(range(12))),
        ),
    ),
    text_encoders=(
        clip.clip_vit_l(
            file_prefix="cond_stage_model.transformer.",
            kohya_prefix="lora_te",
            embedding_name="emb_params",
        ),
    ),
    vae=autoencoder.autoencoder_kl(latent_scale=0.18215),
    variants=tuple(
        Variant(
            prediction=prediction,
            resolution=512,
            architecture=ARCHITECTURE,
            base_model_version="sd_v1",
        )
        for prediction in ("epsilon", "v")
    ),
    recognise_single_file=recognise_single_file,
    recognise_folder=recognise_folder,
    recognise_metadata=recognise_metadata,
    implementation="https://github.com/CompVis/stable-diffusion",
    has_readers=True,
    pipeline=Pipeline(
        class_name="StableDiffusionPipeline",
        inpaint_class_name="StableDiffusionInpaintPipeline",
        entries={"safety_checker": [None, None], "requires_safety_checker": False},
    ),
    memory=(
        (0, "LoRA with memory.gradient_checkpointing = true and 512 pixels"),
        (7, "LoRA"),
        (11, "LoRA and, with gradient checkpointing, full fine-tuning"),
        (20, "everything"),
    ),
    random_configs={
        "unet": {**unet.SMALL, **unet.SMALL_LEVELS, "cross_attention_dim": 32},
        "vae": autoencoder.SMALL,
        "text_encoder": clip.SMALL,
    },
)

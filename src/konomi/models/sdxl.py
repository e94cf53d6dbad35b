"""Stable Diffusion XL: CLIP ViT-L and OpenCLIP ViT-bigG side by side, pooled text and sizes, 1024 pixels."""

from collections.abc import Mapping
from typing import Any

from konomi.models.family import UNET_PREFIX, Family, Shapes, TowerSpec


def recognise_ldm(shapes: Shapes) -> bool:
    """A UNet with size conditioning, and two text encoders (the refiner has one)."""
    return f"{UNET_PREFIX}label_emb.0.0.weight" in shapes and any(
        name.startswith("conditioner.embedders.1.model.") for name in shapes
    )


def recognise_folder(unet: Mapping[str, Any], second_encoder: bool) -> bool:
    """A UNet that reads text and time ids, and two text encoders."""
    return second_encoder and unet.get("addition_embed_type") == "text_time"


SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    towers=(
        TowerSpec(
            part="text_encoder",
            tokenizer="tokenizer",
            ldm_prefix="conditioner.embedders.0.transformer.",
            layer=2,
            final_norm=False,
            kohya_prefix="lora_te1",
        ),
        TowerSpec(
            part="text_encoder_2",
            tokenizer="tokenizer_2",
            ldm_prefix="conditioner.embedders.1.model.",
            open_clip=True,
            pooled=True,
            layer=2,
            final_norm=False,
            pad_token="!",
            kohya_prefix="lora_te2",
        ),
    ),
    predictions=("epsilon", "v"),
    latent_scale=0.13025,
    resolution={"epsilon": 1024, "v": 1024},
    float32_vae=True,
    reads_sizes=True,
    recognise_ldm=recognise_ldm,
    recognise_folder=recognise_folder,
    pipeline="StableDiffusionXLPipeline",
    inpaint_pipeline="StableDiffusionXLInpaintPipeline",
    modelspec_architecture={"epsilon": "stable-diffusion-xl-v1-base", "v": "stable-diffusion-xl-v1-base"},
    ss_base_model_version={"epsilon": "sdxl_base_v1-0", "v": "sdxl_base_v1-0"},
)

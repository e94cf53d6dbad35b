"""Stable Diffusion 1.x: one CLIP ViT-L/14 text encoder, epsilon prediction, 512 pixels."""

from collections.abc import Mapping
from typing import Any

from konomi.models.family import UNET_PREFIX, Family, Shapes, TowerSpec


def recognise_ldm(shapes: Shapes) -> bool:
    """CLIP in transformers' layout beside a UNet without size conditioning."""
    return f"{UNET_PREFIX}label_emb.0.0.weight" not in shapes and any(
        name.startswith("cond_stage_model.transformer.") for name in shapes
    )


def recognise_folder(unet: Mapping[str, Any], second_encoder: bool) -> bool:
    """Transformers with 1x1 convolutions around them."""
    return not second_encoder and not unet.get("addition_embed_type") and not unet.get("use_linear_projection", False)


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    towers=(
        TowerSpec(
            part="text_encoder",
            tokenizer="tokenizer",
            ldm_prefix="cond_stage_model.transformer.",
            kohya_prefix="lora_te",
        ),
    ),
    predictions=("epsilon", "v"),
    latent_scale=0.18215,
    resolution={"epsilon": 512, "v": 512},
    recognise_ldm=recognise_ldm,
    recognise_folder=recognise_folder,
    pipeline="StableDiffusionPipeline",
    inpaint_pipeline="StableDiffusionInpaintPipeline",
    modelspec_architecture={"epsilon": "stable-diffusion-v1", "v": "stable-diffusion-v1"},
    ss_base_model_version={"epsilon": "sd_v1", "v": "sd_v1"},
)

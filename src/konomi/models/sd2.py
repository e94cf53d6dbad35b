"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 without its last layer; epsilon at 512 pixels or v at 768.

The two predictions have the same tensors. A single file therefore has to be told apart by what stands beside them:
see `konomi.models.load.load_base`.
"""

from collections.abc import Mapping
from typing import Any

from konomi.models.family import UNET_PREFIX, Family, Shapes, TowerSpec


def recognise_ldm(shapes: Shapes) -> bool:
    """OpenCLIP in its own layout beside a UNet without size conditioning."""
    return f"{UNET_PREFIX}label_emb.0.0.weight" not in shapes and any(
        name.startswith("cond_stage_model.model.") for name in shapes
    )


def recognise_folder(unet: Mapping[str, Any], second_encoder: bool) -> bool:
    """Transformers with linear projections around them."""
    return not second_encoder and not unet.get("addition_embed_type") and bool(unet.get("use_linear_projection", False))


SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2",
    towers=(
        TowerSpec(
            part="text_encoder",
            tokenizer="tokenizer",
            ldm_prefix="cond_stage_model.model.",
            open_clip=True,
            ldm_extra_layers=1,
            pad_token="!",
            kohya_prefix="lora_te",
        ),
    ),
    predictions=("v", "epsilon"),
    latent_scale=0.18215,
    resolution={"v": 768, "epsilon": 512},
    recognise_ldm=recognise_ldm,
    recognise_folder=recognise_folder,
    pipeline="StableDiffusionPipeline",
    inpaint_pipeline="StableDiffusionInpaintPipeline",
    modelspec_architecture={"v": "stable-diffusion-v2-768-v", "epsilon": "stable-diffusion-v2-512"},
    ss_base_model_version={"v": "sd_v2_v", "epsilon": "sd_v2"},
)

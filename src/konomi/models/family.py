"""What a family of models declares about itself. One file per family holds one `Family`; nothing is derived."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from konomi.diffusion.noise import Prediction

TextPart = Literal["text_encoder", "text_encoder_2"]
Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape, as a file's header gives them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSpec:
    """One text encoder of a family."""

    part: TextPart
    tokenizer: Literal["tokenizer", "tokenizer_2"]
    """Its tokenizer's folder in a diffusers folder."""
    ldm_prefix: str
    """What its tensors' names start with in a single file."""
    open_clip: bool = False
    """The single file holds it in OpenCLIP's layout."""
    ldm_extra_layers: int = 0
    """Layers that the single file has beyond those used (SD2: the last of 24)."""
    pooled: bool = False
    """Its projected, pooled output conditions the denoiser."""
    layer: int = 1
    """Layer whose states are used, counted from the end: 1 the last."""
    final_norm: bool = True
    """Whether the final layer norm is applied to those states."""
    pad_token: str = "<|endoftext|>"
    kohya_prefix: str
    """Of LoRA keys in kohya's files."""

    @property
    def unread_layers(self) -> int:
        """Layers at the end of those diffusers counts that nothing reads (SDXL's first encoder: one)."""
        return 0 if self.pooled else self.layer - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of latent diffusion models."""

    name: str
    title: str
    """For messages: `Stable Diffusion 1`."""
    towers: tuple[TowerSpec, ...]
    predictions: tuple[Prediction, ...]
    """Those published; the first is assumed where a file does not tell."""
    latent_scale: float
    resolution: Mapping[Prediction, int]
    float32_vae: bool = False
    """The VAE overflows in half precision."""
    reads_sizes: bool = False
    """The denoiser reads sizes and pooled text (SDXL)."""
    recognise_ldm: Callable[[Shapes], bool]
    """Whether the tensors of a single file are of this family."""
    recognise_folder: Callable[[Mapping[str, Any], bool], bool]
    """The same from a UNet's config and whether there is a second text encoder."""
    pipeline: str
    inpaint_pipeline: str
    """diffusers' pipeline classes, for model_index.json."""
    modelspec_architecture: Mapping[Prediction, str]
    """`modelspec.architecture`."""
    ss_base_model_version: Mapping[Prediction, str]
    """Of kohya's metadata."""
    kohya_prefix: str = "lora_unet"


UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

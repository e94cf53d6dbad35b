"""The autoencoder of latent diffusion (diffusers' `AutoencoderKL`): what its families share."""

from __future__ import annotations

from konomi.families.family import VaeSpec

VAE_PREFIX = "first_stage_model."

SMALL = {
    "block_out_channels": [8, 16, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
}
"""Settings of a small one of random weights."""


def autoencoder_kl(*, latent_scale: float, float32: bool = False) -> VaeSpec:
    """Four channels, an eighth of the side. `float32`: it overflows in half precision."""
    return VaeSpec(
        class_name="AutoencoderKL",
        file_prefix=VAE_PREFIX,
        latent_channels=4,
        latent_factor=8,
        latent_scale=latent_scale,
        float32=float32,
    )

"""The plain autoencoder against diffusers' class: the same bits forward and backward."""

import json
from typing import Any

import pytest
import torch

from konomi.errors import ModelError
from konomi.families import CONFIGS
from konomi.families.sd1 import SD1
from konomi.models.architectures import architecture_of
from konomi.models.autoencoder import Autoencoder
from konomi.models.parts import build_part
from twins import assert_same_gradients, listed

SMALL: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
}  # fmt: skip


def oracle_for(config: dict[str, Any]) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_config(
        {name: value for name, value in config.items() if not name.startswith("_")}
    )


@pytest.mark.parametrize(
    "change",
    [{}, {"use_quant_conv": False, "use_post_quant_conv": False},
    {"mid_block_add_attention": False},
     {"latent_channels": 16, "layers_per_block": 1, "block_out_channels": [8, 8, 16]}],
)  # fmt: skip
@pytest.mark.parametrize("size", [(32, 48), (44, 20)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_same_bits_as_diffusers(
    change: dict[str, Any], size: tuple[int, int], layout: torch.memory_format
) -> None:
    config = SMALL | change
    theirs = oracle_for(config).eval().to(memory_format=layout)
    ours = Autoencoder(config).eval().to(memory_format=layout)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = ours.encode(pixels)
    distribution = theirs.encode(pixels).latent_dist
    assert torch.equal(mean, distribution.mean)
    assert torch.equal(std, distribution.std)
    drawn, expected = ours.decode(mean), theirs.decode(distribution.mean).sample
    assert torch.equal(drawn, expected)
    for answer in (drawn, expected):
        answer.square().sum().backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_same_names_order_and_shapes_at_full_size(family: str) -> None:
    config = json.loads((CONFIGS / family / "vae.json").read_text())
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), oracle_for(config)
    assert listed(ours) == listed(theirs)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn = gelu"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "up_block_types"),
    ],
)
def test_other_kinds_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"config of vae .*unlike Stable Diffusion's: {named}"):
        build_part(architecture_of(SD1), SD1.vae, SMALL | change, {}, where="model.safetensors")

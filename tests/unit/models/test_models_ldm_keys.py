"""The computed key maps against measured ones of the published models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.formats.ldm_keys import (
    UNetLayout,
    diffusers_unet_module_to_ldm,
    ldm_unet_module_to_diffusers,
    openclip_to_transformers,
    published_layout,
    transformers_to_openclip,
    unet_to_diffusers,
    unet_to_ldm,
    vae_to_diffusers,
    vae_to_ldm,
)

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"
FAMILIES = [
    ("sd1", published_layout("sd1"), 859),
    ("sd2", published_layout("sd1"), 859),
    ("sdxl", published_layout("sdxl"), 2515),
]


def reference(family: str) -> dict[str, Any]:
    path = REFERENCE / f"stable_diffusion_{family}.json"
    if not path.is_file():
        pytest.skip("the measured key maps (../shared/reference) are not here")
    return json.loads(path.read_text())


@pytest.mark.parametrize(("family", "layout", "_"), FAMILIES)
def test_unet_names_equal_the_measured_map(family: str, layout: UNetLayout, _: int) -> None:
    prefix = "model.diffusion_model."
    pairs = {
        ldm.removeprefix(prefix): theirs.removeprefix("unet_")
        for ldm, theirs in reference(family)["ldm_diffusers_keymap"].items()
        if ldm.startswith(prefix)
    }
    assert len(pairs) > 600
    for ldm, theirs in pairs.items():
        assert unet_to_diffusers(ldm, layout) == theirs
        assert unet_to_ldm(theirs, layout) == ldm


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_vae_names_equal_the_measured_map(family: str) -> None:
    prefix = "first_stage_model."
    pairs = {
        ldm.removeprefix(prefix): theirs.removeprefix("vae_")
        for ldm, theirs in reference(family)["ldm_diffusers_keymap"].items()
        if ldm.startswith(prefix)
    }
    assert len(pairs) == 248
    for ldm, theirs in pairs.items():
        assert vae_to_diffusers(ldm, levels=4) == theirs
        assert vae_to_ldm(theirs, levels=4) == ldm


@pytest.mark.parametrize(
    ("family", "ldm_prefix", "our_prefix", "width"),
    [
        ("sd2", "cond_stage_model.model.", "te_", 1024),
        ("sdxl", "conditioner.embedders.1.model.", "te1_", 1280),
    ],
)
def test_openclip_names_equal_the_measured_map(
    family: str, ldm_prefix: str, our_prefix: str, width: int
) -> None:
    data = reference(family)
    measured = {
        ldm.removeprefix(ldm_prefix): {theirs.removeprefix(our_prefix)}
        for ldm, theirs in data["ldm_diffusers_keymap"].items()
        if ldm.startswith(ldm_prefix)
    }
    for ldm, operation in data["ldm_diffusers_operator_map"].items():
        if ldm.startswith(ldm_prefix):
            measured[ldm.removeprefix(ldm_prefix)] = {
                name.removeprefix(our_prefix) for name in operation["cat"]
            }
    assert len(measured) > 200
    for name, theirs in measured.items():
        wide = 3 if "in_proj" in name else 1
        assert set(openclip_to_transformers(name, torch.zeros(wide, 2))) == theirs, name
    del width


def test_openclip_round_trip_is_bit_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    original = {
        "positional_embedding": torch.randn(5, 4, generator=generator),
        "token_embedding.weight": torch.randn(9, 4, generator=generator),
        "text_projection": torch.randn(4, 6, generator=generator),
        "ln_final.weight": torch.randn(4, generator=generator),
        "transformer.resblocks.0.attn.in_proj_weight": torch.randn(12, 4, generator=generator),
        "transformer.resblocks.0.attn.in_proj_bias": torch.randn(12, generator=generator),
        "transformer.resblocks.0.attn.out_proj.weight": torch.randn(4, 4, generator=generator),
        "transformer.resblocks.0.mlp.c_fc.bias": torch.randn(8, generator=generator),
        "transformer.resblocks.0.ln_2.weight": torch.randn(4, generator=generator),
    }
    ours: dict[str, torch.Tensor] = {}
    for name, tensor in original.items():
        ours.update(openclip_to_transformers(name, tensor))
    q = ours["text_model.encoder.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(q, original["transformer.resblocks.0.attn.in_proj_weight"][:4])
    back = transformers_to_openclip(ours)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_flattened_names_of_kohya_sdxl() -> None:
    known = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_out_0": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
        ),
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "middle_block_1_transformer_blocks_9_ff_net_2": (
            "mid_block.attentions.0.transformer_blocks.9.ff.net.2"
        ),
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_0_1_proj_in": "up_blocks.0.attentions.0.proj_in",
        "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
        "label_emb_0_2": "add_embedding.linear_2",
        "out_2": "conv_out",
    }
    for flat, path in known.items():
        assert ldm_unet_module_to_diffusers(flat) == path
        dotted = diffusers_unet_module_to_ldm(path)
        assert dotted is not None
        assert dotted.replace(".", "_") == flat
        assert ldm_unet_module_to_diffusers(dotted) == path


@pytest.mark.parametrize(
    "name", ["input_blocks_40_1_proj_in", "input_blocks_4_1_transformer_blocks_0_attn3_to_q", ""]
)
def test_unknown_names_give_none(name: str) -> None:
    assert ldm_unet_module_to_diffusers(name) is None


def test_every_name_of_an_odd_layout_has_a_way_back() -> None:
    layout = UNetLayout.from_config(
        {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "layers_per_block": [1, 3, 2],
        }
    )
    assert (
        unet_to_ldm("up_blocks.1.upsamplers.0.conv.weight", layout)
        == "output_blocks.6.2.conv.weight"
    )
    assert (
        unet_to_ldm("down_blocks.2.resnets.1.conv1.bias", layout)
        == "input_blocks.8.0.in_layers.2.bias"
    )

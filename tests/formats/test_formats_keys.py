"""Names of modules, taken from the real architectures, against the grammar and the measured key
maps.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from konomi.formats.kohya_keys import is_norm, key_of, layout_of, name_of
from konomi.formats.ldm_keys import published_layout

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
UNETS = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@cache
def unet_modules(family: str) -> list[str]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[family])
    return [name for name, module in unet.named_modules() if list(module.parameters(recurse=False))]


def text_modules() -> list[str]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.device("meta"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(num_hidden_layers=32))
    return [
        name for name, module in model.named_modules() if list(module.parameters(recurse=False))
    ]


@pytest.mark.parametrize("family", UNETS)
def test_every_unet_module_survives_the_underscores(family: str) -> None:
    modules = unet_modules(family)
    assert len(modules) == {"sd1": 391, "sd2": 391, "sdxl": 1050}[family]
    names = {f"lora_unet_{path.replace('.', '_')}": f"denoiser.{path}" for path in modules}
    assert len(names) == len(modules)
    assert {name: key_of(name) for name in names} == names


@pytest.mark.parametrize("prefix", ["lora_te", "lora_te1", "lora_te2"])
def test_every_text_module_survives_the_underscores(prefix: str) -> None:
    part = "text_encoder_2" if prefix == "lora_te2" else "text_encoder"
    names = {f"{prefix}_{path.replace('.', '_')}": f"{part}.{path}" for path in text_modules()}
    assert len(names) == 32 * 8 + 4
    assert {name: key_of(name) for name in names} == names


def test_sdxl_is_written_with_the_original_names_and_read_in_both() -> None:
    written = {
        name_of(f"denoiser.{path}", "sdxl"): f"denoiser.{path}" for path in unet_modules("sdxl")
    }
    assert len(written) == 1050
    assert all(name.removeprefix("lora_unet_").startswith(LDM_STARTS) for name in written)
    assert {name: key_of(name) for name in written} == written
    assert layout_of(written) == published_layout("sdxl")


LDM_STARTS = (
    "input_blocks_",
    "middle_block_",
    "output_blocks_",
    "time_embed_",
    "label_emb_",
    "out_",
)


def test_original_names_of_sd1_are_read_too() -> None:
    keys = [f"denoiser.{path}" for path in unet_modules("sd1")]
    names = {name_of(key, "sdxl", published_layout("sd1")): key for key in keys}
    assert layout_of(names) == published_layout("sd1")
    assert {name: key_of(name, published_layout("sd1")) for name in names} == names
    assert layout_of(name for name in names if "attn" in name) == published_layout("sd1")


def test_original_names_equal_the_measured_map() -> None:
    path = REFERENCE / "stable_diffusion_sdxl.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    measured = json.loads(path.read_text())["ldm_diffusers_keymap"]
    prefix = "model.diffusion_model."
    pairs = {
        theirs.removeprefix("unet_").rpartition(".")[0]: ldm.removeprefix(prefix).rpartition(".")[0]
        for ldm, theirs in measured.items()
        if ldm.startswith(prefix)
    }
    assert len(pairs) == 1050
    for path_, ldm in pairs.items():
        assert name_of(f"denoiser.{path_}", "sdxl") == f"lora_unet_{ldm.replace('.', '_')}"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        ),
        (
            "lora_te_encoder_layers_11_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.11.self_attn.q_proj",
        ),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
            "denoiser.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        ("lora_unet_input_blocks_1_0_in_layers_2", "denoiser.down_blocks.0.resnets.0.conv1"),
        ("lora_unet_output_blocks_2_2_conv", "denoiser.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_double_blocks_0_img_attn_qkv", None),
        ("lora_unet_", None),
        ("lora_unet_mid_block_", None),
        ("lora_unet_mid__block", None),
        ("lora_unet_input_blocks_99_1_proj_in", None),
        ("lora_xx_mid_block", None),
        ("lora_te_text_model_encoder_layers_x_mlp_fc1", None),
    ],
)
def test_single_names(name: str, key: str | None) -> None:
    assert key_of(name) == key


def test_names_of_sd1_and_of_text_encoders() -> None:
    assert name_of("denoiser.conv_in", "sd1") == "lora_unet_conv_in"
    assert (
        name_of("text_encoder.text_model.final_layer_norm", "sd2")
        == "lora_te_text_model_final_layer_norm"
    )
    assert (
        name_of("text_encoder.text_model.final_layer_norm", "sdxl")
        == "lora_te1_text_model_final_layer_norm"
    )
    assert name_of("text_encoder_2.text_projection", "sdxl") == "lora_te2_text_projection"
    assert (
        is_norm("denoiser.conv_norm_out")
        and is_norm("a.layer_norm1")
        and not is_norm("denoiser.conv_out")
    )

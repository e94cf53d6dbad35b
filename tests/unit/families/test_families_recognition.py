"""One recogniser: what a base loads as, `inspect` says, whatever its widths; and what families say
of themselves.
"""

import pytest
import torch

from konomi.families import FAMILIES, known_family, published_config, titles
from konomi.families.foreign_names import (
    embedding_names,
    is_convolution,
    kohya_prefix,
    part_of_folder,
)
from konomi.families.recognition import (
    family_of_kohya_names,
    family_of_layers,
    family_of_metadata,
    family_of_vectors,
    prediction_of_word,
)
from konomi.formats.adapter_file import inspect_file
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file

NAMES = [family.name for family in FAMILIES]


def base_called(name):
    return load_base("tiny") if name == "tiny" else random_base(name)


@pytest.mark.parametrize("name", ["tiny", *NAMES])
def test_a_base_is_of_one_family_for_loading_and_for_inspect(name, tmp_path):
    base = base_called(name)
    save_single_file(base, tmp_path / "base.safetensors", dtype=torch.float16)
    save_folder(base, tmp_path / "folder", dtype=torch.float16)
    for path in (tmp_path / "base.safetensors", tmp_path / "folder"):
        assert inspect_file(path, check=False).family == load_base(path).family == base.family


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_what_a_family_says_is_what_its_published_configs_say(family):
    denoiser, vae = (
        published_config(family, family.denoiser.folder),
        published_config(family, family.vae.folder),
    )
    assert family.denoiser.context_width == denoiser["cross_attention_dim"]
    assert sum(encoder.width for encoder in family.text_encoders) == denoiser["cross_attention_dim"]
    assert family.vae.latent_channels == vae["latent_channels"] == denoiser["in_channels"]
    assert family.vae.latent_factor == 2 ** (len(vae["block_out_channels"]) - 1)
    assert family.vae.latent_scale == vae["scaling_factor"]
    assert family.variants[0].resolution in (
        vae["sample_size"],
        denoiser["sample_size"] * family.vae.latent_factor,
        768,
    )
    for encoder in family.text_encoders:
        config = published_config(family, encoder.folder)
        assert (encoder.width, encoder.max_length) == (
            config["hidden_size"],
            config["max_position_embeddings"],
        )


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_a_family_knows_the_words_that_it_writes(family):
    for variant in family.variants:
        for word in ("ss_base_model_version", "modelspec.architecture"):
            value = (
                variant.base_model_version
                if word.startswith("ss_")
                else f"{variant.architecture}/lora"
            )
            assert family_of_metadata({word: value}) is family
            assert family_of_metadata({word: value, "ss_v2": str(family.ss_v2)}) is family


def test_words_that_one_prediction_alone_has():
    assert prediction_of_word("sd_v2_v") == prediction_of_word("stable-diffusion-v2-768-v") == "v"
    assert prediction_of_word("stable-diffusion-v2-512") == "epsilon"
    assert prediction_of_word("sd_v1") is prediction_of_word("") is None


TO_K = "denoiser.down_blocks.1.attentions.0.transformer_blocks.{}.attn{}.to_k"


@pytest.mark.parametrize(
    ("widths", "name"),
    [
        ({TO_K.format(0, 2): 768}, "sd1"),
        ({TO_K.format(0, 2): 1024}, "sd2"),
        ({TO_K.format(0, 2): None, TO_K.format(1, 1): 640}, "sdxl"),
        ({TO_K.format(0, 1): 768}, ""),
        ({"text_encoder_2.text_model.encoder.layers.0.mlp.fc1": None}, "sdxl"),
        ({"text_encoder.text_model.encoder.layers.0.mlp.fc1": 1024}, "sd2"),
        ({"text_encoder.text_model.encoder.layers.0.mlp.fc2": 1024}, ""),
        ({"text_encoder.text_model.encoder.layers.0.mlp.fc1": 768}, ""),
        ({}, ""),
    ],
)
def test_layers_tell_their_family(widths, name):
    assert family_of_layers(widths) is known_family(name)


def test_words_and_names_tell_their_family():
    assert family_of_vectors({"text_encoder": 768}) is known_family("sd1")
    assert family_of_vectors({"text_encoder": 32}) is None
    assert family_of_vectors({"text_encoder": 32, "text_encoder_2": 32}) is known_family("sdxl")
    assert family_of_kohya_names(["lora_unet_x", "lora_te1_y"]) is known_family("sdxl")
    assert family_of_kohya_names(["lora_unet_x", "lora_te_y"]) is None


def test_what_others_call_the_parts():
    assert part_of_folder() == {
        "unet": "denoiser", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2",
    }  # fmt: skip
    assert [kohya_prefix("text_encoder", name) for name in (*NAMES, "")] == [
        "lora_te",
        "lora_te",
        "lora_te1",
        "lora_te",
    ]
    assert kohya_prefix("text_encoder_2", "") == "lora_te2"
    assert embedding_names(["text_encoder"]) == {"text_encoder": "emb_params"}
    assert set(embedding_names(["text_encoder", "text_encoder_2"]).values()) == {"clip_l", "clip_g"}
    assert [is_convolution("mid_block.attentions.0.proj_in", name) for name in (*NAMES, "")] == [
        True,
        *[False] * 3,
    ]
    assert titles("and") == "Stable Diffusion 1, 2 and XL"

"""What a trained file says of itself, as other tools read it."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference, Hadamard, Kronecker, LayerUpdate, Rescale
from konomi.formats.family import family_of
from konomi.formats.kohya_metadata import TrainingFacts, last_part, training_metadata, with_minimum

FACTS = TrainingFacts(
    name="sks",
    family="sd1",
    base_name="/home/somebody/models/v1-5.safetensors",
    base_short_hash="0123abcd",
    base_sha256="ab" * 32,
    rank=16,
    alpha=8.0,
    network_args={"conv_dim": 4},
    resolution=(768, 512),
    clip_skip=2,
    tag_frequency={"/data/10_sks dog": {"sks dog": 5}},
    dataset_folders={"C:\\data\\10_sks dog": {"n_repeats": 10, "img_count": 5}},
    bucket_info={"buckets": {"0": {"resolution": [512, 512], "count": 5}}},
    num_train_images=50,
    num_prior_images=0,
    steps=700,
    epoch=10,
    seed=42,
    comment="好み",
    trigger="sks",
    extra={"learning_rate": 1e-4, "cache_latents": True},
    finished=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def test_metadata_as_other_tools_read_it() -> None:
    metadata = training_metadata(FACTS)
    assert all(isinstance(value, str) for value in metadata.values())
    expected = {
        "ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora",
        "ss_network_dim": "16", "ss_network_alpha": "8", "ss_network_args": '{"conv_dim": 4}',
        "ss_output_name": "sks",
        "ss_sd_model_name": "v1-5.safetensors", "ss_sd_model_hash": "0123abcd",
        "ss_resolution": "(768, 512)",
        "ss_clip_skip": "2", "ss_tag_frequency": '{"10_sks dog": {"sks dog": 5}}',
        "ss_num_reg_images": "0",
        "ss_steps": "700", "ss_epoch": "10", "ss_seed": "42", "ss_learning_rate": "0.0001",
        "ss_cache_latents": "True",
        "ss_training_comment": "好み", "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.title": "sks",
        "modelspec.resolution": "768x512", "modelspec.date": "2026-01-02T03:04:05",
        "modelspec.prediction_type": "epsilon", "modelspec.trigger_phrase": "sks",
    }  # fmt: skip
    assert {name: metadata.get(name) for name in expected} == expected
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "10_sks dog": {"n_repeats": 10, "img_count": 5}
    }
    assert not [
        name
        for name, value in metadata.items()
        if "/home" in value or "/data" in value or "C:" in value
    ]


@pytest.mark.parametrize(
    ("family", "prediction", "version", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("sd2", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_metadata_names_the_family(
    family: str, prediction: str, version: str, architecture: str
) -> None:
    metadata = training_metadata(replace(FACTS, family=family, prediction=prediction))  # type: ignore[arg-type]
    assert (
        metadata["ss_base_model_version"] == version
        and metadata["modelspec.architecture"] == architecture
    )
    assert metadata["ss_v2"] == str(family == "sd2")


def test_paths_are_reduced_and_hub_names_kept() -> None:
    names = {
        "/a/b.ckpt": "b.ckpt",
        "C:\\m\\b.ckpt": "b.ckpt",
        "~/m/b": "b",
        "./b": "b",
        "org/model": "org/model",
        "b": "b",
    }
    assert {name: last_part(name) for name in names} == names


KEY = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
LOKR = Kronecker(w1=torch.ones(2, 3), w2_a=torch.ones(5, 4), w2_b=torch.ones(4, 256), alpha=2.0)
LOHA = Hadamard(
    torch.ones(9, 4), torch.ones(4, 1024), torch.ones(9, 4), torch.ones(4, 1024), alpha=2.0
)


@pytest.mark.parametrize(
    ("update", "algo", "rank", "family"),
    [
        (LOKR, "lokr", "4", "sd1"),
        (replace(LOKR, w1=torch.ones(2, 8)), "lokr", "4", "sdxl"),
        (LOHA, "loha", "4", "sd2"),
        (Rescale(torch.ones(768), on_input=True), "ia3", None, "sd1"),
        (Difference(torch.ones(9, 2048)), "full", None, "sdxl"),
    ],
)
def test_a_file_of_lycoris_kinds_says_which(
    update: LayerUpdate, algo: str, rank: str | None, family: str
) -> None:
    adapter = Adapter(layers={KEY: update})
    assert family_of(adapter) == family
    metadata = with_minimum(adapter, family, "x")
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"]) == {"algo": algo}
    assert (metadata.get("ss_network_dim"), metadata.get("ss_network_alpha")) == (
        rank,
        "2" if rank else None,
    )
    said = {"ss_network_module": "mine", "ss_network_args": "{}"}
    assert with_minimum(replace(adapter, metadata=said), family, "x").items() >= said.items()
    mixed = Adapter(
        layers={KEY: update, f"{KEY}.0": replace(LOKR, alpha=None) if algo == "loha" else LOHA}
    )
    assert json.loads(with_minimum(mixed, family, "x")["ss_network_args"]) == {}

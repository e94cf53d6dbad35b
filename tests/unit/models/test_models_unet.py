"""The plain UNet against diffusers' class: the same bits forward and backward."""

import json
from typing import Any

import pytest
import torch

from konomi.families import CONFIGS
from konomi.models.random_base import random_base
from konomi.models.unet import UNet, is_plain
from twins import assert_same_gradients, listed

FAMILIES = ("sd1", "sd2", "sdxl")


def oracle_for(config: dict[str, Any]) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


def run(module: Any, sample: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 77, config["cross_attention_dim"], generator=generator)
    added = None
    if config.get("addition_embed_type"):
        pooled = (
            config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        )
        sizes = torch.tensor([[1024, 768, 0, 13, 1024, 1024]] * 2)
        added = {"text_embeds": torch.randn(2, pooled, generator=generator), "time_ids": sizes}
    answer: torch.Tensor = module(
        sample, torch.tensor([1, 801]), text, added_cond_kwargs=added
    ).sample
    return answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.kernels
def test_same_bits_as_diffusers(family: str, size: tuple[int, int], checkpointing: bool) -> None:
    base = random_base(family)
    config = dict(base.source.configs["unet"])
    ours: Any = base.denoiser.requires_grad_(True).train()
    assert type(ours) is UNet
    theirs = oracle_for(config).train()
    theirs.load_state_dict(ours.state_dict())
    if checkpointing:
        ours.enable_gradient_checkpointing()
    sample = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    answers = [run(module, sample, config) for module in (ours, theirs)]
    assert torch.equal(*answers)
    for answer in answers:
        answer.square().sum().backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_names_order_and_shapes_at_full_size(family: str) -> None:
    config = json.loads((CONFIGS / family / "unet.json").read_text())
    with torch.device("meta"):
        ours, theirs = UNet(config), oracle_for(config)
    assert listed(ours) == listed(theirs)


def test_uneven_levels() -> None:
    """Other numbers of layers, depths and heads in each level, and attention in the middle level
    only.
    """
    config = {
        "in_channels": 4, "out_channels": 4, "block_out_channels": [8, 16, 24],
        "layers_per_block": [1, 2, 3],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "attention_head_dim": [1, 2, 3],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 3],
        "norm_num_groups": 4, "cross_attention_dim": 12, "use_linear_projection": True,
    }  # fmt: skip
    assert is_plain(config)
    theirs = oracle_for(config)
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict())
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(ours, sample, config), run(theirs, sample, config))


@pytest.mark.parametrize(
    "change",
    [
        {"dual_cross_attention": True},
        {"time_cond_proj_dim": 8},
        {"act_fn": "gelu"},
        {"up_block_types": ["UpBlock2D"] * 3},
        {"down_block_types": ["AttnDownBlock2D"] * 3, "up_block_types": ["AttnUpBlock2D"] * 3},
    ],
)
def test_what_it_does_not_cover_is_left_to_diffusers(change: dict[str, Any]) -> None:
    config = dict(random_base("sd1").source.configs["unet"])
    assert is_plain(config)
    assert not is_plain({**config, **change})


def test_a_warm_start_imports_neither_diffusers_nor_transformers() -> None:
    import subprocess
    import sys

    program = """
import sys, torch
from konomi.diffusion.conditioning import Conditioning
from konomi.models.random_base import random_base
base = random_base("sd1")
base.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), Conditioning(torch.zeros(1, 77, 32)))
print(sorted({"diffusers", "transformers", "accelerate", "peft", "torch._dynamo"}
             & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]", result.stdout

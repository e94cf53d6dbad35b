"""Settings of size, against the tensors in the file that a run leaves: read by safetensors
alone.
"""

import pytest
import torch
from safetensors.torch import load_file

from konomi.formats.adapter_file import write_adapter
from konomi.methods.dreamartist import DreamArtistConfig
from konomi.methods.lora import LoraConfig
from konomi.methods.pivotal import PivotalConfig
from konomi.methods.textual_inversion import TextualInversionConfig


def written(kit, config, tmp_path, family="sd1"):
    """Tensors of a run's file before its first step; a LoRA's kohya names without their endings ->
    (rank, alpha).
    """
    method = kit.method(kit.base(family), kit.recipe(config))
    method.plan()
    path = tmp_path / "made.safetensors"
    write_adapter(method.export(), path, dtype=torch.float32)
    tensors = {name: tensor for found in sorted(tmp_path.glob("*.safetensors")) for name, tensor in
               ((f"{found.stem}/{n}", t) for n, t in load_file(found).items())}  # fmt: skip
    layers = {
        name.partition("/")[2].removesuffix(".lora_down.weight"): (
            down.shape[0],
            tensors[name.replace("lora_down.weight", "alpha")].item(),
        )
        for name, down in tensors.items()
        if name.endswith("lora_down.weight")
    }
    return tensors, layers


def of(layers, *, text=False, conv=False):
    """The (rank, alpha) of one kind of layer, all of them."""

    def is_conv(name):
        return "resnets" in name or "samplers" in name

    return {
        value
        for name, value in layers.items()
        if name.startswith("lora_te") == text and is_conv(name) == conv
    }


@pytest.mark.parametrize(
    ("options", "denoiser", "conv", "text"),
    [
        ({"rank": 4}, {(4, 4.0)}, set(), set()),
        ({"rank": 4, "alpha": 1.0}, {(4, 1.0)}, set(), set()),
        ({"rank": 4, "conv_rank": 2, "conv_alpha": 0.5}, {(4, 4.0)}, {(2, 0.5)}, set()),
        ({"rank": 4, "conv_rank": 2}, {(4, 4.0)}, {(2, 2.0)}, set()),
        ({"rank": 4, "text_rank": 3, "text_alpha": 6.0}, {(4, 4.0)}, set(), {(3, 6.0)}),
        ({"rank": 4, "alpha": 2.0, "text_rank": 3}, {(4, 2.0)}, set(), {(3, 3.0)}),
        ({"targets": (), "text_rank": 3}, set(), set(), {(3, 3.0)}),
    ],
    ids=str,
)
def test_ranks_and_alphas_of_a_lora(kit, tmp_path, options, denoiser, conv, text):
    _, layers = written(kit, LoraConfig(**options), tmp_path)
    assert of(layers) == denoiser
    assert of(layers, conv=True) == conv
    assert of(layers, text=True) == text


def test_text_rank_is_both_text_encoders_of_sdxl(kit, tmp_path):
    _, layers = written(kit, LoraConfig(rank=2, text_rank=3, text_alpha=1.5), tmp_path, "sdxl")
    assert {name[:9]: layers[name] for name in layers if name.startswith("lora_te")} == {
        "lora_te1_": (3, 1.5),
        "lora_te2_": (3, 1.5),
    }


def test_scaling_by_the_root_is_in_the_alpha_that_others_divide_by_the_rank(kit, tmp_path):
    _, layers = written(kit, LoraConfig(rank=4, alpha=3.0, scaling="sqrt_rank"), tmp_path)
    # alpha / sqrt(rank) = 1.5 = 6 / 4
    assert of(layers) == {(4, 6.0)}


def test_pivotals_sections_are_the_loras_and_the_words(kit, tmp_path):
    config = PivotalConfig(
        words=TextualInversionConfig(vectors=5),
        lora=LoraConfig(rank=2, text_rank=3, text_alpha=1.0),
    )
    tensors, layers = written(kit, config, tmp_path)
    assert of(layers) == {(2, 2.0)}
    assert of(layers, text=True) == {(3, 1.0)}
    assert [t.shape[0] for name, t in tensors.items() if "bundle_emb" in name] == [5]


def test_vectors_of_both_words_of_dreamartist(kit, tmp_path):
    tensors, _ = written(kit, DreamArtistConfig(vectors=2, negative_vectors=7), tmp_path)
    assert {name: tensor.shape[0] for name, tensor in tensors.items()} == {
        "made/emb_params": 2,
        "made-neg/emb_params": 7,
    }


def test_rank_of_dreamartists_loras(kit, tmp_path):
    _, layers = written(kit, DreamArtistConfig(lora_rank=3, targets=("cross_attention",)), tmp_path)
    assert set(layers.values()) == {(3, 3.0)}
    assert all("attn2" in name for name in layers)

"""Layers chosen by group, block and pattern: the names alone, without a base."""

import pytest

from konomi.errors import KonomiError
from konomi.families import FAMILIES
from konomi.families.blocks import block_name, expand, usual_name
from konomi.families.layer_choice import Layer, read_choices, shown_blocks

SD1 = next(family for family in FAMILIES if family.name == "sd1")
SDXL = next(family for family in FAMILIES if family.name == "sdxl")
PUBLISHED = {
    "sd1": {"unet": {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}},
    "sdxl": {"unet": {"block_out_channels": [320, 640, 1280], "layers_per_block": 2}},
}
NAMES = (
    "denoiser.conv_in",
    "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "denoiser.down_blocks.0.resnets.0.conv1",
    "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "denoiser.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "denoiser.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.2",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.11.mlp.fc1",
)
LAYERS = tuple(Layer(name, block_name(SD1, name, PUBLISHED["sd1"]), 1) for name in NAMES)


@pytest.mark.parametrize(
    ("family", "key", "block"),
    [
        # Of the original names, as sd-scripts counts: input_blocks.4.1, output_blocks.11.1, ...
        (SD1, "denoiser.down_blocks.1.attentions.0.proj_in", "IN04"),
        (SD1, "denoiser.down_blocks.0.downsamplers.0.conv", "IN03"),
        (SD1, "denoiser.up_blocks.3.attentions.2.proj_out", "OUT11"),
        (SDXL, "denoiser.up_blocks.2.resnets.2.conv1", "OUT08"),
        (SD1, "denoiser.time_embedding.linear_1", "IN00"),
        (SDXL, "denoiser.add_embedding.linear_1", "IN00"),
        (SD1, "denoiser.conv_out", "OUT11"),
        (SDXL, "denoiser.conv_norm_out", "OUT08"),
        (SDXL, "text_encoder_2.text_model.encoder.layers.31.mlp.fc1", "TE2_31"),
        (SD1, "text_encoder.text_model.embeddings.token_embedding", "TE00"),
        (SD1, "vae.encoder.conv_in", ""),
    ],
)
def test_blocks_have_the_names_of_block_weighted_merging(family, key, block):
    assert block_name(family, key, PUBLISHED[family.name]) == block


def test_names_are_read_as_people_write_them():
    known = ("TE00", "TE01", "IN00", "IN01", "IN02", "M00", "OUT00", "OUT01")
    assert [usual_name(name) for name in ("in4", "mid", "OUT11", "te0")] == [
        "IN04", "M00", "OUT11", "TE00",
    ]  # fmt: skip
    assert expand("IN01-out0", known) == ("IN01", "IN02", "M00", "OUT00")
    assert expand("OUT01-IN02", known) == ("IN02", "M00", "OUT00", "OUT01")
    assert expand("IN*", known) == ("IN00", "IN01", "IN02")
    assert expand("BASE", known) == ("TE00", "TE01")
    assert expand("IN09", known) == () and expand("attention", known) is None
    assert expand("*.attn2.to_k", known) is None
    assert shown_blocks([Layer("x", name) for name in known]) == (
        "TE00-TE01, IN00-IN02, M00, OUT00-OUT01"
    )


@pytest.mark.parametrize(
    ("written", "chosen"),
    [
        (["cross_attention"], [2, 4, 5]),
        (["OUT*"], [5, 6]),
        (["mid", "IN00-IN01:conv"], [3, 4]),
        (["OUT*:cross_attention"], [5]),
        (["*.attn2.to_k", "!M00"], [2, 5]),
        (["!IN*"], [4, 5, 6]),
        (["TE11", "denoiser.conv_in"], [0, 8]),
        (["BASE", "!text_encoder.*.layers.0.*"], [8]),
        (["IN01:*.to_?:cross_attention.kv"], [2]),
    ],
    ids=str,
)
def test_what_entries_mean(written, chosen):
    found = read_choices(written, SD1, LAYERS, setting="method.targets").chosen(
        SD1, LAYERS, usual=lambda layer: True, default=lambda layer: not layer.is_text
    )
    assert [NAMES.index(layer.key) for layer in found] == chosen


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("OUT55", "this base has no block 'OUT55'. Did you mean OUT11? Its blocks: TE00, TE11, IN"),
        ("IN01-IN77", "this base has no block 'IN01-IN77'"),
        ("atention", "there are no layers called 'atention'. Did you mean attention? Known: att"),
        ("*.atn2.to_k", "matches no layer of sd. The name nearest to it is denoiser.up_blocks.1"),
        ("IN01:feed_forward", "Layers of feed_forward are in OUT11."),
        ("IN01:", "'IN01:' is no choice of layers"),
        ("!", "is no choice of layers"),
    ],
)
def test_what_names_nothing_is_an_error_that_names_the_nearest(entry, words):
    with pytest.raises(KonomiError) as error:
        read_choices([entry], SD1, LAYERS, setting="method.targets", base="sd")
    assert words in str(error.value)

"""Weights by block: names, lists, presets."""

import pytest

from konomi.errors import RecipeError
from konomi.families import family_named
from konomi.merging.weights import PRESETS, block_of, known_blocks, parse_blocks

SD1, SDXL = family_named("sd1"), family_named("sdxl")


def test_names_of_blocks():
    assert len(known_blocks(SD1)) == 26 and len(known_blocks(SDXL)) == 20
    unet = "model.diffusion_model."
    for name, block in {
        "input_blocks.0.0.weight": "IN00",
        "input_blocks.11.0.in_layers.0.weight": "IN11",
        "middle_block.1.norm.weight": "M00",
        "output_blocks.3.1.conv.weight": "OUT03",
        "out.2.weight": "OUT11",
        "time_embed.0.weight": "IN00",
    }.items():
        assert block_of(unet + name, SD1) == block
    assert block_of(f"{unet}out.2.bias", SDXL) == "OUT08"
    assert block_of(f"{unet}label_emb.0.0.bias", SDXL) == "IN00"
    assert block_of("cond_stage_model.transformer.text_model.x", SD1) == "BASE"
    assert block_of("conditioner.embedders.1.model.ln_final.weight", SDXL) == "BASE"
    assert block_of("first_stage_model.encoder.conv_in.weight", SD1) == ""


def test_lists_with_and_without_base():
    numbers = [i / 100 for i in range(26)]
    full = parse_blocks(",".join(map(str, numbers)), SD1)
    assert list(full.values()) == numbers and full["BASE"] == 0.0 and full["OUT11"] == 0.25
    without = parse_blocks(",".join(map(str, numbers[1:])), SD1)
    assert "BASE" not in without and without == {k: v for k, v in full.items() if k != "BASE"}
    assert len(parse_blocks(",".join(["1"] * 19), SDXL)) == 19


def test_presets_are_their_curves():
    """Values of the known lists for SD1: a V that is 1 at both ends, smoothstep in 24 steps."""
    v = parse_blocks("GRAD_V", SD1)
    assert (v["IN00"], v["M00"], v["OUT11"]) == (1, 0, 1)
    assert v["IN01"] == pytest.approx(0.9166666667)
    smooth = parse_blocks("smoothstep", SD1)
    assert smooth["IN01"] == pytest.approx(0.00506366083747434)
    assert parse_blocks("COSINE", SD1)["IN01"] == pytest.approx(0.995722430686905)
    reverse = parse_blocks("REVERSE_SMOOTHSTEP", SDXL)
    assert reverse["IN00"] == 1 and reverse["OUT08"] == 0
    for name, _ in PRESETS:
        assert all(0 <= weight <= 1 for weight in parse_blocks(name, SDXL).values())


@pytest.mark.parametrize("written", ["1,2", "IN12:1", "IN00:x", "GRAD_W", "IN00:nan", ""])
def test_what_means_nothing_is_refused(written):
    with pytest.raises(RecipeError, match="--blocks"):
        parse_blocks(written, SD1)

"""What has no effect is named; block weights are those of the original implementation's blocks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LowRank
from konomi.errors import RecipeError
from konomi.formats.ldm_keys import published_layout, unet_to_ldm
from konomi.generation.adapter_request import AdapterRequest, adapters_of_prompt, strengths
from konomi.generation.block_weights import parse_block_weights
from konomi.generation.request import Request
from konomi.generation.unused import trained_otherwise, unused_in_adapter, unused_in_request
from konomi.models.random_base import random_base

PLAIN = Request(prompt="a dog")
ATTENTION = "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"prompt": "a (dog:1.2) <lora:x:1>, <3 [a|b] {c} a_b"}, None),
        ({"prompt": "a <ti:x:1>"}, "<ti:x:1> in the prompt is drawn as text"),
        (
            {"prompt": "a __colour__ dog"},
            "__colour__ in the prompt is drawn as text: konomi does not fill in wildcards",
        ),
        ({"prompt": "a {red|blue} dog"}, "{red|blue} in the prompt is drawn as text"),
        ({"prompt": "embedding:bad_hands, dog"}, "Write bad_hands."),
        ({"prompt": "a dog AND a cat"}, "AND in the prompt is drawn as a word"),
        ({"negative": "<wlr:y:1>"}, "<wlr:y:1> in the negative prompt is drawn as text"),
        ({"negative": "bad <lora:x:1>"}, "Tags in the negative prompt add no adapter"),
        ({"negative": "bad", "guidance": 1.0}, "The negative prompt has no effect with guidance 1"),
        (
            {"guidance_rescale": 0.5, "guidance": 1.0},
            "Guidance rescale has no effect with guidance 1",
        ),
        ({"strength": 0.5}, "Strength has no effect without a picture"),
    ],
)
def test_what_a_request_says_in_vain(change, said):
    notes = unused_in_request(replace(PLAIN, **change))
    assert [said in note for note in notes] == ([True] if said else [])


def adapter(*keys, words=(), up=1.0, **metadata):
    layers = {
        key: LowRank(down=torch.ones(1, 2), up=torch.full((2, 1), up), alpha=1.0) for key in keys
    }
    return Adapter(
        layers=layers,
        embeddings={word: {"text_encoder": torch.ones(1, 2)} for word in words},
        metadata=metadata,
    )


@pytest.mark.parametrize(
    ("content", "weights", "said"),
    [
        (adapter(ATTENTION), {}, None),
        (adapter(ATTENTION), {"denoiser_weight": 0.0}, "x.safetensors is at strength 0"),
        (
            adapter(ATTENTION),
            {"text_weight": 0.5},
            "holds nothing for the text encoder: its weight 0.5 has no effect",
        ),
        (
            adapter(TEXT),
            {"denoiser_weight": 0.5},
            "holds nothing for the denoiser: its weight 0.5 has no effect",
        ),
        (adapter(ATTENTION, TEXT), {"denoiser_weight": 0.0}, None),
        (
            adapter(ATTENTION, TEXT),
            {"denoiser_weight": 0.0, "text_weight": 0.0},
            "is at strength 0",
        ),
        (
            adapter(ATTENTION, TEXT, up=0.0),
            {},
            "all its 2 layers are zero, as before any training: they do nothing",
        ),
        (adapter(words=["sks"]), {}, "brings sks, which no prompt contains: it has no effect"),
        (adapter(words=["dog", "dog-neg"]), {}, None),
        (
            adapter(ATTENTION, **{"modelspec.trigger_phrase": "sks"}),
            {},
            "was trained with the trigger sks",
        ),
        (adapter(ATTENTION, **{"modelspec.trigger_phrase": "dog"}), {}, None),
        (
            adapter(ATTENTION),
            {"unused": ("start=0.2",), "kind": "lora"},
            "<lora:x:...>: start=0.2 has no effect here",
        ),
    ],
)
def test_what_an_adapter_is_added_for_in_vain(content, weights, said):
    notes = unused_in_adapter(AdapterRequest(Path("x.safetensors"), **weights), content, [PLAIN])
    assert [said in note for note in notes] == ([True] if said else [])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Fox_style.safetensors").touch()
    return tmp_path


def test_arguments_of_a_tag_are_used_or_kept_to_be_named(folder):
    prompt = "a <lora:Fox_style:0.8:0.6:4:te=0.5:lbw=ALL:lbwe=x:start=2:stop=9>"
    (asked,) = adapters_of_prompt(prompt, [folder])
    assert (asked.text_weight, asked.denoiser_weight) == (0.5, 0.6)
    assert asked.unused == ("4", "lbwe=x", "start=2", "stop=9")
    assert set(dict(asked.blocks).values()) == {1.0}


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("<lora:fox_stile:1>", r"no such adapter .* did you mean Fox_style\?"),
        ("<lora:Fox_style:lbw=1,0>", r"lbw has 2 numbers; lists of 12, 17, 20, 26 have a meaning"),
        ("<lora:Fox_style:lbw=OUTX>", r"lbw='OUTX' is not a number; presets are ALL, NONE, INS"),
        (f"<lora:Fox_style:{'9' * 400}>", r"too large a number"),
        (f"<lora:Fox_style:lbw={','.join(['1'] * 16)},{'9' * 400}>", r"too large a number"),
    ],
)
def test_tags_that_mean_nothing_are_refused(folder, tag, message):
    with pytest.raises(RecipeError, match=message):
        adapters_of_prompt(f"a dog {tag}", [folder])


@pytest.mark.parametrize(
    ("family", "layout"), [("sd1", published_layout("sd1")), ("sdxl", published_layout("sdxl"))]
)
def test_blocks_are_those_of_the_original_implementation(family, layout):
    """By the independent table that single files are read with."""
    ends = {"input_blocks": "IN", "output_blocks": "OUT"}
    seen = set()
    base = random_base(family, configs={"unet": {"layers_per_block": 2}})
    for name in base.state("denoiser"):
        stem, _, _ = name.rpartition(".")
        theirs = unet_to_ldm(name, layout).split(".")
        expected = "M00" if theirs[0] == "middle_block" else ""
        if theirs[0] in ends:
            expected = f"{ends[theirs[0]]}{int(theirs[1]):02d}"
        assert base.block_of(f"denoiser.{stem}") == expected, name
        seen.add(expected)
    assert len(seen) > 12


def test_block_weights_scale_layers():
    """17 numbers: the text encoder, then the blocks of SD1 with attention."""
    written = ",".join(["0.5", "0.25", *["0"] * 15])
    blocks = parse_block_weights(written, "<lora:x:...>")
    assert list(blocks)[:3] == ["BASE", "IN01", "IN02"]
    request = AdapterRequest(Path("x"), 2.0, 4.0, blocks=tuple(blocks.items()))
    other = "denoiser.down_blocks.0.resnets.0.conv1"
    deep = "denoiser.up_blocks.3.attentions.2.proj_in"
    downsampler = "denoiser.down_blocks.0.downsamplers.0.conv"
    content = adapter(ATTENTION, TEXT, other, deep, downsampler)
    asked, without = strengths(request, content, random_base("sd1", size="full").block_of)
    assert [asked.of(key) for key in (ATTENTION, TEXT, other, deep)] == [0.5, 2.0, 0.5, 0.0]
    assert (without, asked.of(downsampler)) == ((downsampler,), 2.0)
    (note,) = unused_in_adapter(request, content, [PLAIN], without)
    assert "lbw does not name 1 layers" in note


V = {"modelspec.prediction_type": "v"}
EPSILON = {"modelspec.prediction_type": "epsilon"}


@pytest.mark.parametrize(
    ("metadata", "base", "said"),
    [
        ({}, ("epsilon", False), None),
        ({}, ("v", True), None),
        (V, ("v", False), None),
        (
            V,
            ("epsilon", False),
            "base that predicts v (velocity), and this one predicts noise (epsilon)",
        ),
        (
            EPSILON,
            ("v", False),
            "base that predicts noise (epsilon), and this one predicts v (velocity)",
        ),
        ({"ss_base_model_version": "sd_v2_v"}, ("epsilon", False), "base that predicts v"),
        (
            {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
            ("epsilon", False),
            "base that predicts v",
        ),
        (EPSILON | {"ss_v_parameterization": "True"}, ("v", False), None),
        (
            {"ss_zero_terminal_snr": "True"},
            ("v", False),
            "with zero terminal SNR, and this base has none",
        ),
        (
            {"ss_zero_terminal_snr": "False"},
            ("v", True),
            "without zero terminal SNR, and this base has it",
        ),
        ({"ss_zero_terminal_snr": "maybe", "modelspec.prediction_type": "?"}, ("v", True), None),
    ],
)
def test_an_adapter_of_another_noise_process_is_named(metadata, base, said):
    prediction, zero = base
    drawn = SimpleNamespace(process=SimpleNamespace(prediction=prediction), zero_terminal_snr=zero)
    lora = replace(adapter(ATTENTION), metadata=metadata)
    notes = trained_otherwise("x.safetensors", lora, drawn)
    assert [note.startswith("x.safetensors says") and said in note for note in notes] == (
        [True] if said else []
    )
    # A word lives in the text encoder, which has no noise process.
    assert trained_otherwise("x.pt", Adapter(embeddings={"w": {}}, metadata=metadata), drawn) == []

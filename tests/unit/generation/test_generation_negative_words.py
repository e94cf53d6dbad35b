"""Learned words with a negative half, and adapters of two branches, while drawing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.kinds import LowRank
from konomi.config.sections import TextConfig
from konomi.generation.drawing import with_negative_words
from konomi.generation.generate import generate
from konomi.generation.infotext import parse_infotext
from konomi.generation.request import Request
from konomi.models.random_base import random_base

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
REQUEST = Request(prompt="a photo of sks", seed=3, steps=2, width=32, height=32, sampler="ddim")


def base_of(family="sd1"):
    base = random_base(family)
    base.place("cpu", torch.float32)
    return base


def words(base, *names):
    generator = torch.Generator().manual_seed(4)
    widths = {part: table.shape[1] for part, table in base.token_vectors("x").items()}
    return Adapter(
        embeddings={
            name: {
                part: torch.randn(2, width, generator=generator) for part, width in widths.items()
            }
            for name in names
        }
    )


def draw(base, request):
    (picture,) = generate(base, [request])
    return np.asarray(picture.image), picture


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(("given", "by_hand"), [("", "sks-neg"), ("blurry", "sks-neg, blurry")])
@pytest.mark.kernels
def test_the_negative_half_goes_into_the_negative_prompt_by_itself(family, given, by_hand):
    base = base_of(family)
    with attach(base, [(words(base, "sks"), Strengths())]):
        without, _ = draw(base, replace(REQUEST, negative=given))
    with attach(base, [(words(base, "sks", "sks-neg"), Strengths())]):
        shown, picture = draw(base, replace(REQUEST, negative=given))
        written, same = draw(base, replace(REQUEST, negative=by_hand))
        again, _ = draw(base, parse_infotext(picture.infotext).request())
    assert not np.array_equal(shown, without)
    np.testing.assert_array_equal(shown, written)
    np.testing.assert_array_equal(shown, again)
    assert picture.request.negative == same.request.negative == by_hand
    assert f"\nNegative prompt: {by_hand}\n" in picture.infotext


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance", "expected"),
    [
        ("a photo of sks", "", 7.0, "sks-neg"),
        ("a (SKS:1.2), at night", "bad", 7.0, "sks-neg, bad"),
        ("[sks:cat:0.5]", "", 7.0, "sks-neg"),
        ("sks <lora:other:0.5>", "", 7.0, "sks-neg"),
        ("sks", "bad, (sks-neg:0.8)", 7.0, "bad, (sks-neg:0.8)"),
        ("sks", "bad", 1.0, "bad"),
        ("a cat", "", 7.0, ""),
        ("asks", "", 7.0, ""),
        ("sks-neg", "", 7.0, ""),
        ("lone and sks and tom", "", 7.0, "sks-neg, tom-neg"),
        ("<lora:sks:1>", "", 7.0, ""),
    ],
)
def test_where_the_half_is_added(prompt, negative, guidance, expected):
    request = Request(prompt=prompt, negative=negative, guidance=guidance)
    assert with_negative_words(request, ["sks", "sks-neg", "lone", "tom-neg", "tom"]) == expected
    assert with_negative_words(request, []) == negative


def two_branches(base, seed):
    keys = ("denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",)
    keys += ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj",)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key in keys:
        rows, columns = base.module(key).weight.shape
        found[key] = LowRank(
            torch.randn(2, columns, generator=generator),
            torch.randn(rows, 2, generator=generator),
            2,
        )
    return Adapter(layers=found)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_negative_adapter_acts_in_the_negative_branch_alone(family, monkeypatch):
    """The oracle: each branch asked with only its own adapter on the base, text encoder
    included.
    """
    base = base_of(family)
    positive, negative = two_branches(base, 1), two_branches(base, 2)
    request = replace(REQUEST, prompt="a dog", negative="bad")
    asked = []
    plain = type(base).predict

    def watched(self, latents, timesteps, conditioning):
        answer = plain(self, latents, timesteps, conditioning)
        asked.append((latents, timesteps, conditioning, answer))
        return answer

    with attach(base, [(replace(positive, negative=negative), Strengths())]):
        monkeypatch.setattr(type(base), "predict", watched)
        both, _ = draw(base, request)
        monkeypatch.undo()
        only_positive, _ = draw(base, replace(request, guidance=1.0))
    assert len(asked) == 4
    for number, half in enumerate((negative, positive) * 2):
        latents, timesteps, conditioning, answer = asked[number]
        with torch.no_grad(), attach(base, [(half, Strengths())]):
            assert torch.equal(plain(base, latents, timesteps, conditioning), answer)
            text = base.encode_captions([("bad", "a dog")[number % 2]], TextConfig(emphasis=True))
            assert torch.equal(text.states, conditioning.states)
    with attach(base, [(positive, Strengths())]):
        np.testing.assert_array_equal(draw(base, replace(request, guidance=1.0))[0], only_positive)
        assert not np.array_equal(draw(base, request)[0], both)

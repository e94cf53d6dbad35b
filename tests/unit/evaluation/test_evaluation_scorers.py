"""Scores are what float64 numpy computes from the same features."""

import hashlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.pictures import Material, Pictures, References
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.scorers import SCORERS
from konomi.evaluation.scorers.diversity import LpipsDiversity

PROMPTS = (
    EvaluationPrompt("a sks dog", "subject", "a dog"),
    EvaluationPrompt("a sks dog on the beach", "context", "a dog on the beach"),
    EvaluationPrompt("a dog", "class", "a dog"),
    EvaluationPrompt("a house", "unrelated", "a house"),
)
SEEDS = (7, 8, 9)
SUBJECT, OTHER = ({(p, s) for p in half for s in range(3)} for half in ((0, 1), (2, 3)))


class Known:
    """An encoder whose every feature is a function of content, computed without torch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def vector(self, content: bytes) -> np.ndarray:
        seed = hashlib.sha256(self.name.encode() + content).digest()[:8]
        drawn = np.random.default_rng(int.from_bytes(seed, "big")).normal(size=12) + 0.4
        return drawn / np.linalg.norm(drawn)

    def features(self, images):
        return torch.from_numpy(np.stack([self.vector(i.tobytes()) for i in images])).float()

    def style_features(self, images):
        return Known(self.name + "style").features(images)

    def text_features(self, texts):
        return torch.from_numpy(np.stack([self.vector(t.encode()) for t in texts])).float()


def picture(seed: int, side: int = 8) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def pictures(first: int) -> Pictures:
    places = [(p, s) for p in range(len(PROMPTS)) for s in range(len(SEEDS))]
    return Pictures(PROMPTS, SEEDS, {place: picture(first + i) for i, place in enumerate(places)})


def material(*, one_encoder: bool = False) -> Material:
    image = Known("image")
    text = image if one_encoder else Known("text")
    references = References(tuple(picture(900 + i) for i in range(5)), held_out=True)
    return Material(pictures(0), pictures(100), references, (), Encoders(image, text))


def scored(name: str, given: Material):
    scorer = next(scorer for scorer in SCORERS if scorer.name == name)
    return scorer.score(given)


def cosine(encoder, one, others) -> float:
    """Mean over `others`, in float64."""
    mine = encoder.vector(one.tobytes())
    return float(np.mean([mine @ encoder.vector(other.tobytes()) for other in others]))


def check(found, expected) -> None:
    assert set(found) == set(expected)
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, abs=1e-5)


def test_scorers_say_what_they_are():
    names = [scorer.name for scorer in SCORERS]
    assert len(set(names)) == len(names)
    for scorer in SCORERS:
        assert scorer.title and scorer.source and scorer.unit and scorer.prompts


@pytest.mark.parametrize("name, which", [("likeness", "image"), ("clip_likeness", "text")])
def test_likeness_is_the_mean_cosine_with_the_references(name, which):
    given = material()
    encoder = getattr(given.encoders, which)
    images = given.candidate.images
    expected = {p: cosine(encoder, images[p], given.references.images) for p in SUBJECT}
    check(scored(name, given), expected)


def test_with_one_encoder_likeness_is_not_said_twice():
    assert scored("clip_likeness", material(one_encoder=True)) == {}


def test_prompt_following_is_the_cosine_with_the_prompt_in_plain_words():
    given = material()
    encoder = given.encoders.text
    expected = {
        (p, s): encoder.vector(given.candidate.images[p, s].tobytes())
        @ encoder.vector(PROMPTS[p].plain.encode())
        for p, s in SUBJECT
    }
    check(scored("prompt_following", given), expected)


def test_drift_is_the_distance_to_the_base_at_the_same_place():
    given = material()
    now, then = given.candidate.images, given.base.images
    expected = {p: 1 - cosine(given.encoders.image, now[p], [then[p]]) for p in OTHER}
    check(scored("drift", given), expected)
    same = Material(given.base, given.base, given.references, (), given.encoders)
    assert max(scored("drift", same).values()) < 1e-6


def test_preservation_and_leak():
    given = material()
    encoder, references = given.encoders.image, given.references.images
    now, then = given.candidate.images, given.base.images
    classes = {p: cosine(encoder, now[p], references) for p in OTHER if p[0] == 2}
    check(scored("preservation", given), classes)
    nearer = {p: cosine(encoder, now[p], references) for p in OTHER}
    leak = {p: value - cosine(encoder, then[p], references) for p, value in nearer.items()}
    check(scored("leak", given), leak)


def test_pictures_that_are_not_there_are_no_scores():
    given = material()
    some = {place: image for place, image in given.candidate.images.items() if place != (2, 1)}
    part = Material(
        Pictures(PROMPTS, SEEDS, some), given.base, given.references, (), given.encoders
    )
    assert set(scored("drift", part)) == OTHER - {(2, 1)}
    nothing = Material(
        Pictures(PROMPTS[:0], SEEDS, {}), given.base, References((), False), (), given.encoders
    )
    assert all(scorer.score(nothing) == {} for scorer in SCORERS)


def test_style_likeness_is_the_mean_cosine_of_grams():
    given = material()
    images = given.candidate.images
    style = Known("imagestyle")
    expected = {p: cosine(style, images[p], given.references.images) for p in SUBJECT}
    check(scored("style_likeness", given), expected)


def test_diversity_is_the_mean_distance_between_pictures_of_one_prompt():
    given = material()
    images, encoder = given.candidate.images, given.encoders.image
    expected = {
        (p, s): 1 - cosine(encoder, images[p, s], [images[p, o] for o in range(3) if o != s])
        for p, s in images
    }
    found = scored("diversity", given)
    check(found, expected)
    pairs = [
        1 - cosine(encoder, images[p, i], [images[p, j]])
        for p in range(4)
        for i in range(3)
        for j in range(i)
    ]
    assert np.mean(list(found.values())) == pytest.approx(np.mean(pairs), abs=1e-5)
    alone = Pictures(PROMPTS, SEEDS[:1], {(p, 0): images[p, 0] for p in range(4)})
    assert scored("diversity", replace(given, candidate=alone)) == {}


def test_lpips_is_asked_for_each_pair_in_its_range(monkeypatch):
    """The package's weights come from the network; a stand-in with its interface counts pixels."""

    class Lpips:
        def __init__(self, net, verbose):
            assert (net, verbose) == ("alex", False)

        def eval(self):
            return self

        def __call__(self, one, other):
            assert one.shape == other.shape == (1, 3, 8, 8)
            assert float(one.min()) >= -1 and float(one.max()) <= 1
            return (one - other).abs().mean()[None, None, None, None]

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Lpips))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "lpips")
    given = material()
    found = LpipsDiversity().score(given)
    values = {p: np.asarray(i, dtype=np.float64) / 127.5 for p, i in given.candidate.images.items()}
    expected = {
        (p, s): np.mean([np.abs(values[p, s] - values[p, o]).mean() for o in range(3) if o != s])
        for p, s in values
    }
    check(found, expected)


def test_without_lpips_nothing_is_said_by_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    scorer = LpipsDiversity()
    assert not scorer.available() and scorer.score(material()) == {}

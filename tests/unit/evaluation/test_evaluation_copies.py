"""A copy is found when it is moved, mirrored, or darker; the same subject elsewhere is none."""

from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from konomi.evaluation.encoders import load_encoders
from konomi.evaluation.pictures import Material, Pictures, References
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.scorers.copies import Copies, _small, align, matches

PROMPT = (EvaluationPrompt("a sks cup", "subject", "a cup"),)


def scene(seed: int, *, moved: int = 0, ground: str = "") -> Image.Image:
    """A few shapes on a ground, of which one is the subject."""
    drawn = np.random.default_rng(seed)
    colours = [tuple(int(c) for c in drawn.integers(0, 255, 3)) for _ in range(4)]
    image = Image.new("RGB", (128, 128), ground or colours[0])
    pen = ImageDraw.Draw(image)
    for colour in colours[1:3]:
        x, y = (int(v) for v in drawn.integers(10, 90, 2))
        pen.rectangle((x, y, x + 22, y + 30), fill=colour)
    pen.ellipse((40 + moved, 40, 84 + moved, 96), fill="red", outline="black", width=5)
    return image


def given(drawn: Image.Image, training: list[Image.Image], base: Image.Image) -> Material:
    def one(image):
        return Pictures(PROMPT, (0,), {(0, 0): image})

    return Material(
        one(drawn), one(base), References(tuple(training), False), tuple(training), encoders()
    )


@cache
def encoders():
    return load_encoders("tiny", "tiny")


TRAINING = [scene(seed) for seed in (1, 2, 3)]
BASE = scene(50, moved=30)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        ImageOps.mirror,
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: image.resize((256, 256)),
        lambda image: image.transform((128, 128), Image.Transform.AFFINE, (1, 0, 6, 0, 1, -4)),
    ],
    ids=["same", "mirrored", "darker", "larger", "moved"],
)
def test_a_changed_copy_is_found(change):
    found = matches(given(change(TRAINING[1]), TRAINING, BASE))[0, 0]
    assert found.training == 1 and found.similarity > 0.8
    assert found.is_copy, found


def test_the_subject_elsewhere_is_no_copy():
    found = matches(given(scene(77, moved=-25), TRAINING, BASE))[0, 0]
    assert not found.is_copy, found
    assert Copies().score(given(scene(77, moved=-25), TRAINING, BASE)) == {(0, 0): 0.0}
    assert Copies().score(given(TRAINING[0], TRAINING, BASE)) == {(0, 0): 1.0}


def test_what_the_base_draws_anyway_is_no_copy():
    assert not matches(given(TRAINING[1], TRAINING, TRAINING[1]))[0, 0].is_copy


def test_doubles_among_the_training_pictures_are_not_what_is_usual():
    doubled = [TRAINING[0], TRAINING[0].copy(), TRAINING[1]]
    assert matches(given(TRAINING[0], doubled, BASE))[0, 0].is_copy


def test_one_training_picture_alone_is_compared_with_what_the_base_draws():
    assert matches(given(TRAINING[0], TRAINING[:1], BASE))[0, 0].is_copy
    assert not matches(given(BASE, TRAINING[:1], BASE))[0, 0].is_copy


def test_without_training_pictures_nothing_is_said():
    assert matches(given(BASE, [], BASE)) == {}


def test_alignment_is_numpys_correlation():
    one, other = _small(scene(1)), _small(scene(2))
    values = [np.asarray(i, dtype=np.float64).transpose(2, 0, 1) for i in (one, other)]
    best = -1.0
    for template in (values[1], values[1][:, :, ::-1]):
        middle = centred(template[:, 4:28, 4:28])
        for y in range(9):
            for x in range(9):
                window = centred(values[0][:, y : y + 24, x : x + 24])
                lengths = np.linalg.norm(middle) * np.linalg.norm(window)
                best = max(best, float(middle @ window / lengths))
    assert align(one, other).structure == pytest.approx(best, abs=1e-5)
    assert align(Image.new("RGB", (64, 64), "red"), other).structure == pytest.approx(0, abs=1e-5)


def centred(values: np.ndarray) -> np.ndarray:
    return (values - values.mean((1, 2), keepdims=True)).ravel()

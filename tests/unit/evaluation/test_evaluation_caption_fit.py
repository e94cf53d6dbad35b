"""Wrong captions: each picture's own against others', by tables whose answer is known."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import median_abs_deviation

from konomi.config.recipe import Recipe
from konomi.evaluation import caption_fit
from konomi.evaluation.caption_fit import _tried, caption_excesses, deviations, is_wrong
from konomi.evaluation.fixed_noise import Captioned
from konomi.methods.lora import LoraConfig
from konomi.models.load import load_base


def test_each_picture_is_tried_with_its_own_caption_and_different_others():
    captions = ["a", "b", "a", "c", "d", "e", "f", "g", "h"]
    for number, own in enumerate(captions):
        tried = _tried(captions, number)
        assert tried[0] == own and len(tried) == 5 == len(set(tried))
    assert _tried(["a", "a", "b"], 0) == ["a", "b"]


def test_the_excess_is_the_loss_with_the_own_caption_beside_the_mean_of_the_others(monkeypatch):
    captions = tuple("abcdef")
    table = np.random.default_rng(0).uniform(0.1, 0.2, (6, 6))
    images = tuple(Image.new("RGB", (16, 16), (40 * n, 0, 0)) for n in range(6))
    base, order = load_base("tiny"), []

    def losses(model, recipe, batches):
        (batch,) = batches
        ids = batch.sample_ids.tolist()
        order.extend(one for one in ids if one not in order)
        return tuple(
            table[order.index(one), captions.index(text)]
            for one, text in zip(ids, batch.captions, strict=True)
        )

    monkeypatch.setattr(caption_fit, "picture_losses", losses)
    recipe = Recipe(base="tiny", method=LoraConfig())
    measuring = caption_excesses(base, recipe, Captioned(images, captions), (64, 64))
    done = []
    try:
        while True:
            done.append(next(measuring))
    except StopIteration as ended:
        found = ended.value
    assert done[-1] == (30, 30) and [one for one, _ in done] == sorted(one for one, _ in done)
    for number, excess in enumerate(found):
        others = [table[number, captions.index(text)] for text in _tried(captions, number)[1:]]
        wanted = table[number, number] / np.mean(others) - 1
        assert excess == pytest.approx(wanted, abs=1e-12)


def test_deviations_are_those_of_scipy_and_one_far_out_is_wrong():
    values = [*np.random.default_rng(1).normal(-0.12, 0.04, 30), 0.25]
    found = deviations(values)
    spread = median_abs_deviation(values, scale="normal")
    assert found == pytest.approx((values - np.median(values)) / spread, rel=1e-4)
    wrong = [is_wrong(*pair) for pair in zip(values, found, strict=True)]
    assert wrong == [False] * 30 + [True]
    # Where all captions fit alike nothing is blown up, and one that fits its picture is none.
    assert max(deviations([0.0, 0.0, 0.0, 0.001])) < 0.1
    assert not is_wrong(-0.01, 9.0)

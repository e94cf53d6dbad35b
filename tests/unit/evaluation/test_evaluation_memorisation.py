"""AUC against its definition, its interval against simulation, losses against the formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from konomi.config.recipe import Recipe
from konomi.diffusion.random import Rng
from konomi.evaluation.fixed_noise import (
    Captioned,
    LossPictures,
    fixed_noise,
    loss_notes,
    loss_scores,
)
from konomi.evaluation.memorisation import (
    Losses,
    auc,
    auc_interval,
    encoded,
    mean_loss,
    memorisation,
    picture_losses,
)
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.lora import LoraConfig
from konomi.models.load import load_base


def by_definition(ours, others) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in ours for b in others]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_the_share_of_pairs_in_order(ties):
    drawn = np.random.default_rng(0)
    for ours, others in ((5, 1), (7, 3), (40, 25)):
        a, b = drawn.normal(0.5, 1, ours), drawn.normal(0, 1, others)
        if ties:
            a, b = a.round(), b.round()
        assert auc(a, b) == pytest.approx(by_definition(a, b), abs=1e-12)
    with pytest.raises(ValueError, match="no pictures"):
        auc([], [1.0])


def test_auc_of_two_normals_is_the_closed_form():
    drawn = np.random.default_rng(0)
    found = auc(drawn.normal(1, 1, 20_000), drawn.normal(0, 1, 20_000))
    assert found == pytest.approx(0.5 * (1 + math.erf(1 / 2)), abs=0.01)


def test_the_interval_covers_what_it_should():
    drawn, true, inside = np.random.default_rng(0), 0.5 * (1 + math.erf(1 / 2)), 0
    for _ in range(500):
        low, high = auc_interval(auc(drawn.normal(1, 1, 12), drawn.normal(0, 1, 6)), 12, 6)
        inside += low <= true <= high
    assert 0.92 <= inside / 500 <= 0.985


@pytest.mark.parametrize("found", [0.0, 0.3, 0.5, 1.0])
def test_the_interval_is_wide_where_little_is_known(found):
    few, many = auc_interval(found, 5, 1), auc_interval(found, 100, 100)
    for low, high in (few, many):
        assert 0 <= low <= found <= high <= 1
    assert many[1] - many[0] < 0.2 < 0.5 < few[1] - few[0]


def test_pictures_are_told_apart_by_how_far_their_loss_fell_not_by_how_easy_they_are():
    training = Losses(tuned=(0.10, 0.30, 0.22), base=(0.20, 0.45, 0.31))
    held_out = Losses(tuned=(0.05, 0.28), base=(0.06, 0.30))
    found = memorisation(training, held_out)
    assert found.mean == 1.0 and found.base == pytest.approx(1 / 6 * 1)
    assert found.low < 0.7 and found.high == 1 and found.count == 5
    same = memorisation(held_out, held_out)
    assert same.mean == 0.5


def test_the_loss_on_held_out_pictures_stands_beside_the_bases():
    losses = Losses(tuned=(0.1, 0.2, 0.3), base=(0.15, 0.22, 0.35))
    found = mean_loss(losses)
    assert (found.mean, found.base) == (pytest.approx(0.2), pytest.approx(0.24))
    mean, low, high = found.difference
    assert mean == pytest.approx(-0.04) and low < mean < high


def test_losses_of_pictures_are_the_mean_of_the_denoising_loss():
    """One by one, at the same levels, with the noise of its content: whatever the batch."""
    base = load_base("tiny")
    recipe = Recipe(base="tiny", method=LoraConfig())
    drawn = np.random.default_rng(0)
    images = [
        Image.fromarray(drawn.integers(0, 255, (90, 70 + 10 * i, 3), dtype=np.uint8))
        for i in range(2)
    ]
    captions = ["a zwx cat", "a house"]
    side = base.resolution
    size = (side, side)
    batches = encoded(base, images, captions, size, batch=2)
    found = picture_losses(base, recipe, batches, timesteps=2)
    single = encoded(base, images[1:], captions[1:], size)
    alone = picture_losses(base, recipe, single, timesteps=2)
    assert found[1:] == pytest.approx(alone, rel=1e-4) and found[0] != found[1]
    pixels = np.array(ImageOps.fit(images[0], (side, side)), dtype=np.float32) / 127.5 - 1
    with torch.no_grad():
        latents = base.encode_images(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        text = base.encode_captions(captions[:1], recipe.text)
        levels, total = base.process.spread_timesteps(2, recipe.objective), 0.0
        denoising = DenoisingLoss(base, recipe)
        ids = batches[0].sample_ids[:1]
        for level in levels:
            rng = Rng.for_step(0, level).for_samples(ids)
            mean = latents.mean + latents.std * rng.fork("latents").normal(latents.mean.shape[1:])
            noise = rng.fork("noise").normal(mean.shape[1:])
            timesteps_B = base.process.timesteps([level], "cpu")
            noisy = denoising.process.add_noise(mean, noise, timesteps_B)
            answer = base.predict(noisy, timesteps_B, text)
            wanted = denoising.process.target(mean, noise, timesteps_B)
            total += float(((answer - wanted) ** 2).mean())
    assert found[0] == pytest.approx(total / 2, rel=1e-4)


def test_with_little_memory_pictures_are_measured_one_by_one(monkeypatch):
    base, recipe = load_base("tiny"), Recipe(base="tiny", method=LoraConfig())
    images = tuple(Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green"))
    shown = Captioned(images, ("a cat", "a dog", "a house"))
    pictures = LossPictures(recipe, 2, shown, Captioned())
    noise = fixed_noise(pictures, base, shown, (64, 64))
    # Nothing is held out, so training pictures are told from nothing.
    assert noise is not None and set(noise.groups) == {"class"}
    whole = noise.losses(base)
    asked = []

    def full(model, recipe, batches):
        asked.append([len(batch) for batch in batches])
        if max(asked[-1]) > 1:
            raise torch.OutOfMemoryError
        return picture_losses(model, recipe, batches)

    monkeypatch.setattr("konomi.evaluation.fixed_noise.picture_losses", full)
    assert noise.losses(base)["class"] == pytest.approx(whole["class"], rel=1e-4)
    assert asked == [[2], [1, 1]]
    scores = loss_scores({"class": (math.nan,)}, {"class": (0.1,)})
    assert scores == {} and fixed_noise(pictures, base, Captioned(), (64, 64)) is None
    said = loss_notes(pictures, shows_class=False, knows_training=True)
    assert len(said) == 2 and loss_notes(replace(pictures, count=0), shows_class=False,
                                         knows_training=False) == []  # fmt: skip

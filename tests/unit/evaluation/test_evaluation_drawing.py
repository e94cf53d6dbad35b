"""Pictures are drawn once, from the same noise, and an interrupted drawing ends in the same
ones.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.config.generation import GenerationConfig
from konomi.errors import RunError
from konomi.evaluation import drawing
from konomi.evaluation.drawing import DrawingPlan, PictureFolder
from konomi.evaluation.prompts import Subject, prompts_of
from konomi.generation.generate import generate
from konomi.generation.infotext import read_infotext
from konomi.generation.request import Origin, Request
from konomi.models.random_base import random_base

ORIGIN = Origin(model="small")


@pytest.fixture(scope="module")
def base():
    return random_base("sd1")


@pytest.fixture
def stored(tmp_path):
    prompts = prompts_of(["a {}", "a {} on a {} day"], Subject("sks", "dog"))
    settings = GenerationConfig(steps=2, seed=5)
    plan = DrawingPlan(prompts, settings, count=3, size=(32, 32), batch=2)
    return PictureFolder(plan, tmp_path / "base", "base a", tmp_path / "memory")


@pytest.fixture
def drawn(monkeypatch):
    """Seeds that were drawn."""
    seeds = []

    def watched(base, requests, **options):
        seeds.extend(request.seed for request in requests)
        return generate(base, requests, **options)

    monkeypatch.setattr(drawing, "generate", watched)
    return seeds


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pictures_are_those_of_generate(base, stored):
    assert list(stored.draw(base, ORIGIN)) == [0, 2, 3, 5, 6]
    found = stored.images()
    assert set(found) == {(row, column) for row in (0, 1) for column in (0, 1, 2)}
    alone = Request(prompt="a sks dog", seed=6, steps=2, width=32, height=32)
    (picture,) = generate(base, [alone])
    difference = np.abs(np.asarray(picture.image).astype(int) - np.asarray(found[0, 1]).astype(int))
    assert difference.max() <= 1
    infotext = read_infotext(stored.path((0, 1)))
    assert infotext.request().seed == 6 and infotext.prompt == "a sks dog"


def test_what_is_there_is_not_drawn_again(base, stored, drawn):
    list(stored.draw(base, ORIGIN))
    drawn.clear()
    assert list(stored.draw(base, ORIGIN)) == [6]
    assert drawn == []


def test_an_interrupted_drawing_ends_in_the_same_pictures(base, stored, drawn):
    list(stored.draw(base, ORIGIN))
    whole = files(stored.folder)
    stored.path((0, 1)).unlink()
    stored.path((1, 2)).write_bytes(whole["1-2.png"][:200])
    for path in stored.memory.iterdir():
        path.unlink()
    drawn.clear()
    list(stored.draw(base, ORIGIN))
    assert drawn == [5, 6, 7]
    assert files(stored.folder) == whole


def test_the_bases_pictures_are_remembered_across_folders(base, stored, drawn, tmp_path):
    list(stored.draw(base, ORIGIN))
    drawn.clear()
    elsewhere = PictureFolder(stored.plan, tmp_path / "other", "base a", stored.memory)
    assert list(elsewhere.draw(base, ORIGIN)) == [6]
    assert drawn == [] and files(elsewhere.folder) == files(stored.folder)
    other = PictureFolder(stored.plan, tmp_path / "third", "base b", stored.memory)
    assert len(other.missing()) == 4


def test_more_seeds_keep_the_whole_groups(stored, base, drawn, tmp_path):
    list(stored.draw(base, ORIGIN))
    drawn.clear()
    more = replace(stored, plan=replace(stored.plan, count=4))
    list(more.draw(base, ORIGIN))
    assert drawn == [7, 8, 7, 8]


def test_other_settings_are_other_pictures(stored, base):
    list(stored.draw(base, ORIGIN))
    settings = replace(stored.plan.settings, guidance=3.0)
    changed = replace(stored, plan=replace(stored.plan, settings=settings))
    assert len(changed.missing()) == 4


def test_too_little_memory_draws_one_at_a_time(stored, base, monkeypatch):
    sizes = []

    def small(base, requests, *, batch, origin):
        sizes.append(batch)
        if batch > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(base, requests, batch=batch, origin=origin)

    monkeypatch.setattr(drawing, "generate", small)
    assert list(stored.draw(base, ORIGIN))[-1] == 6
    assert sizes == [2, 1, 1, 1, 1]


def test_a_picture_that_is_gone_is_named(stored, base):
    list(stored.draw(base, ORIGIN))
    stored.path((1, 0)).unlink()
    with pytest.raises(RunError, match=r"1-0\.png.*again"):
        stored.images()


def test_a_memory_that_cannot_be_written_costs_nothing(stored, base, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert list(replace(stored, memory=blocked).draw(base, ORIGIN))[-1] == 6
    with Image.open(stored.path((0, 0))) as picture:
        assert picture.size == (32, 32)

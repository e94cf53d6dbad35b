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
from konomi.evaluation.drawing import DrawingPlan, Easel
from konomi.evaluation.prompts import Subject, prompts_of
from konomi.generation.generate import generate
from konomi.generation.infotext import read_infotext
from konomi.generation.request import Origin, Request
from konomi.models.random_base import random_base


@pytest.fixture(scope="module")
def base():
    return random_base("sd1")


@pytest.fixture
def easel(tmp_path):
    prompts = prompts_of(["a {}", "a {} on a {} day"], Subject("sks", "dog"))
    settings = GenerationConfig(steps=2, seed=5)
    plan = DrawingPlan(prompts, settings, count=3, size=(32, 32), batch=2)
    return Easel(plan, tmp_path / "base", "base a", Origin(model="small"), tmp_path / "memory")


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


def test_pictures_are_those_of_generate(base, easel):
    assert list(easel.draw(base)) == [0, 2, 3, 5, 6]
    found = easel.pictures()
    assert set(found.images) == {(row, column) for row in (0, 1) for column in (0, 1, 2)}
    alone = Request(prompt="a sks dog", seed=6, steps=2, width=32, height=32)
    (picture,) = generate(base, [alone])
    difference = np.abs(
        np.asarray(picture.image).astype(int) - np.asarray(found.images[0, 1]).astype(int)
    )
    assert difference.max() <= 1
    infotext = read_infotext(easel.path((0, 1)))
    assert infotext.request().seed == 6 and infotext.prompt == "a sks dog"


def test_what_is_there_is_not_drawn_again(base, easel, drawn):
    list(easel.draw(base))
    drawn.clear()
    assert list(easel.draw(base)) == [6]
    assert drawn == []


def test_an_interrupted_drawing_ends_in_the_same_pictures(base, easel, drawn):
    list(easel.draw(base))
    whole = files(easel.folder)
    easel.path((0, 1)).unlink()
    easel.path((1, 2)).write_bytes(whole["1-2.png"][:200])
    for path in easel.memory.iterdir():
        path.unlink()
    drawn.clear()
    list(easel.draw(base))
    assert drawn == [5, 6, 7]
    assert files(easel.folder) == whole


def test_the_bases_pictures_are_remembered_across_folders(base, easel, drawn, tmp_path):
    list(easel.draw(base))
    drawn.clear()
    elsewhere = Easel(easel.plan, tmp_path / "other", "base a", easel.origin, easel.memory)
    assert list(elsewhere.draw(base)) == [6]
    assert drawn == [] and files(elsewhere.folder) == files(easel.folder)
    other = Easel(easel.plan, tmp_path / "third", "base b", easel.origin, easel.memory)
    assert len(other.missing()) == 4


def test_more_seeds_keep_the_whole_groups(easel, base, drawn, tmp_path):
    list(easel.draw(base))
    drawn.clear()
    more = replace(easel, plan=replace(easel.plan, count=4))
    list(more.draw(base))
    assert drawn == [7, 8, 7, 8]


def test_other_settings_are_other_pictures(easel, base):
    list(easel.draw(base))
    settings = replace(easel.plan.settings, guidance=3.0)
    changed = replace(easel, plan=replace(easel.plan, settings=settings))
    assert len(changed.missing()) == 4


def test_too_little_memory_draws_one_at_a_time(easel, base, monkeypatch):
    sizes = []

    def small(base, requests, *, batch, origin):
        sizes.append(batch)
        if batch > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(base, requests, batch=batch, origin=origin)

    monkeypatch.setattr(drawing, "generate", small)
    assert list(easel.draw(base))[-1] == 6
    assert sizes == [2, 1, 1, 1, 1]


def test_a_picture_that_is_gone_is_named(easel, base):
    list(easel.draw(base))
    easel.path((1, 0)).unlink()
    with pytest.raises(RunError, match=r"1-0\.png.*again"):
        easel.pictures()


def test_a_memory_that_cannot_be_written_costs_nothing(easel, base, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert list(replace(easel, memory=blocked).draw(base))[-1] == 6
    with Image.open(easel.path((0, 0))) as picture:
        assert picture.size == (32, 32)

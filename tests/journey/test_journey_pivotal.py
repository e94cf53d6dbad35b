"""A word and its LoRA in one file, from training to pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import konomi
from konomi.formats.adapter_file import read_adapter
from konomi.training.events import Previewed, Saved

OVERRIDES = [
    "method.word_steps=2",
    "method.word_rate=0.5",
    "method.lora.rank=4",
    "run.preview_every=2",
    "run.save_every=2",
    "preview.steps=3",
    'preview.size="64"',
    'preview.prompts=["a photo of sks"]',
]


@pytest.mark.kernels
def test_previews_are_what_generate_draws_with_the_saved_file(make_recipe, base_folder, tmp_path):
    recipe = make_recipe(tmp_path / "run", method="pivotal", steps=4, overrides=OVERRIDES)
    events = list(konomi.train(recipe))
    previews = {e.step: e.paths[0] for e in events if isinstance(e, Previewed)}
    saved = {e.step: Path(e.path) for e in events if isinstance(e, Saved)}
    assert sorted(saved) == [2, 4]
    for step, file in saved.items():
        (drawn,) = konomi.generate(
            ["a photo of sks"],
            base=str(base_folder),
            add=[str(file)],
            seed=0,
            steps=3,
            size="64",
            output=tmp_path / "o",
        )
        assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(previews[step])))
    adapter = read_adapter(saved[4])
    assert adapter.embeddings.keys() == {"sks"} and adapter.layers
    assert konomi.inspect(saved[4]).kind == "lora"


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(make_recipe, tmp_path, same_tensors):
    options = {"method": "pivotal", "overrides": OVERRIDES[:3]}
    list(konomi.train(make_recipe(tmp_path / "whole", steps=5, **options)))
    for stopped in (1, 2, 3):
        list(konomi.train(make_recipe(tmp_path / str(stopped), steps=stopped, **options)))
        list(konomi.resume(tmp_path / str(stopped), steps=5))
        assert same_tensors(
            tmp_path / "whole" / "sks.safetensors", tmp_path / str(stopped) / "sks.safetensors"
        )

"""A run on top of an adapter that stays attached: its previews are what `generate` draws with both
files, it goes on bit for bit, and says what it was trained with.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import konomi
from konomi.errors import RecipeError, RunError
from konomi.training.events import Step, Warned

pytestmark = pytest.mark.slow


def test_a_run_on_top_of_another(make_recipe, draw, tmp_path):
    style = Path(list(konomi.train(make_recipe(tmp_path / "style", steps=2)))[-1].path)
    style = style.rename(tmp_path / "style.safetensors")
    overrides = [
        f'adapters=["{style}:0.5"]', "run.preview_every=2", 'preview.prompts=["sks dog"]',
        "preview.steps=2", "preview.seed=3", "run.name=top", "method.dora=true",
    ]  # fmt: skip
    whole = list(konomi.train(make_recipe(tmp_path / "whole", steps=2, overrides=overrides)))
    top = Path(whole[-1].path)
    notes = [event.message for event in whole if isinstance(event, Warned)]
    assert any("style.safetensors:0.5 stays attached during training" in note for note in notes)
    assert f"--add {style}:0.5 --add {top}" in whole[-1].next_commands[0]
    # Previews are what the two files draw, the one below the other.
    told = []
    (both,), _ = draw("sks dog", add=[str(top), f"{style}:0.5"], tell=told.append)
    preview = np.asarray(Image.open(tmp_path / "whole/previews/step-000002-00.png")).astype(int)
    assert np.abs(both - preview).max() <= 1 and not any("trained with" in line for line in told)
    (alone,), _ = draw("sks dog", add=[str(top)], tell=told.append)
    assert np.abs(alone - preview).max() > 1
    assert any("was trained with style.safetensors attached, which is not here" in t for t in told)
    # In two sittings.
    stop = konomi.Stop()
    recipe = make_recipe(tmp_path / "halves", steps=2, overrides=overrides)
    for event in konomi.train(recipe, stop=stop):
        if isinstance(event, Step):
            stop.request()
    original = style.read_bytes()
    tensors = load_file(style)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, style)
    with pytest.raises(RunError, match="the attached adapters changed"):
        list(konomi.resume(tmp_path / "halves"))
    style.unlink()
    with pytest.raises(RecipeError, match=r"there is no file .*style\.safetensors"):
        list(konomi.resume(tmp_path / "halves"))
    style.write_bytes(original)
    (*_, finished) = konomi.resume(tmp_path / "halves")
    halves, wanted = load_file(finished.path), load_file(top)
    assert all(tensor.equal(wanted[name]) for name, tensor in halves.items())

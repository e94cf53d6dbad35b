"""`merge saves`: averages of a run's files, with a memory chosen afterwards."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import delta
from konomi.adapters.kinds import LowRank
from konomi.errors import KonomiError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.merging.saves import exponent, save_weights
from konomi.models.load import load_base
from konomi.tasks import merge_saves

RECIPE = """
base = "{base}"

[[data.sources]]
path = "images"

[method]
kind = "{kind}"

[run]
steps = 40
name = "mine"
{more}
"""


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_the_profile_is_the_papers(width):
    # Algorithm 2 of the paper.
    t = width**-2
    gamma = np.roots([1, 7, 16 - t, 12 - t]).real.max()
    assert exponent(width) == pytest.approx(gamma, rel=1e-9)
    steps = range(1, 2001)
    weights = np.array(save_weights(steps, width))
    places = np.array(steps) / 2000
    assert weights.sum() == pytest.approx(1)
    mean = weights @ places
    assert np.sqrt(weights @ (places - mean) ** 2) == pytest.approx(width, rel=0.01)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=0.01)
    few = save_weights([10, 20, 40], width)
    assert sum(few) == pytest.approx(1) and few[0] == pytest.approx((15 / 40) ** (gamma + 1))


def run_folder(folder, base, kind="lora", more=""):
    folder.mkdir()
    (folder / "images").mkdir()
    text = RECIPE.format(base=base, kind=kind, more=more)
    (folder / "recipe.toml").write_text(text)
    return folder


def test_saves_of_a_lora_are_averaged_by_what_they_do(models, tmp_path):
    base = load_base(models("sd1"))
    key, module = next(iter(base.select_layers("cross_attention").items()))
    run = run_folder(tmp_path / "run", models("sd1"), more="[optimizer]\nema_decay = 0.9")
    generator = torch.Generator().manual_seed(0)
    changes = []
    for step in (10, 20, 30, 40):
        down, up = (
            torch.randn(*shape, generator=generator)
            for shape in ((3, module.weight.shape[1]), (module.weight.shape[0], 3))
        )
        word = {"sks": {"text_encoder": torch.full((1, 32), float(step))}}
        adapter = Adapter({key: LowRank(down, up, 3.0)}, word, family="sd1")
        write_adapter(adapter, run / f"mine-step{step:08d}.safetensors")
        changes.append(delta(adapter.layers[key], module.weight.double()))
    told = []
    done = merge_saves(run, tmp_path / "exact.safetensors", ema=0.2, rank=12, tell=told.append)
    weights = save_weights([10, 20, 30, 40], 0.2)
    assert done.weights == dict(zip((10, 20, 30, 40), weights, strict=True))
    expected = sum(w * change for w, change in zip(weights, changes, strict=True))
    found = read_adapter(done.path)
    ours = delta(found.layers[key], module.weight.double())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    (vectors,) = found.embeddings.values()
    wanted = 10 * np.dot(weights, (1, 2, 3, 4))
    torch.testing.assert_close(vectors["text_encoder"], torch.full((1, 32), wanted).float())
    assert told == list(done.notes) and "moving averages themselves" in told[0]
    fewer = merge_saves(run, tmp_path / "fewer.safetensors", ema=0.2)
    assert read_adapter(fewer.path).layers[key].rank == 3 and 0 < fewer.error < 1
    early = merge_saves(run, tmp_path / "early.safetensors", ema=0.02, until=20)
    assert list(early.weights) == [10, 20] and "too far apart" in early.notes[1]
    for wrong, said in (({"ema": 0.3}, "--ema is 0.3"), ({"until": 10}, "has 1 saved files up to")):
        with pytest.raises(KonomiError, match=said):
            merge_saves(run, tmp_path / "no.safetensors", **wrong)
    with pytest.raises(KonomiError, match="is not a run folder"):
        merge_saves(tmp_path, tmp_path / "no.safetensors")


@pytest.mark.slow
def test_saves_of_a_whole_model_stream(models, tmp_path):
    run = run_folder(tmp_path / "run", models("sd1"), "full")
    for seed, step in enumerate((10, 20, 40)):
        (run / f"mine-step{step:08d}.safetensors").symlink_to(models("sd1", seed))
    done = merge_saves(run, tmp_path / "out.safetensors", ema=0.25)
    weights, merged = list(done.weights.values()), load_file(done.path)
    saved = [load_file(models("sd1", seed)) for seed in range(3)]
    for name in list(merged)[::40]:
        if not name.startswith("first_stage_model."):
            expected = sum(w * s[name].double() for w, s in zip(weights, saved, strict=True))
            torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)

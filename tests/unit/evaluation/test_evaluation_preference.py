"""Preference models and SSCD, on small networks with their interfaces."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from konomi.errors import ModelError
from konomi.evaluation.encoders import load_encoders
from konomi.evaluation.pictures import Material, Pictures, References
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.scorers.copies import matches
from konomi.evaluation.scorers.preference import preference_scorers
from konomi.models.clip import load_clip

PROMPTS = (
    EvaluationPrompt("a sks cat", "subject", "a cat"),
    EvaluationPrompt("a house", "unrelated", "a house"),
)


def picture(seed: int) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(drawn).resize((64, 64))


@pytest.fixture(scope="module")
def encoders():
    return load_encoders("tiny", "tiny")


def material(encoders) -> Material:
    images = {(p, s): picture(2 * p + s) for p in range(2) for s in range(2)}
    pictures = Pictures(PROMPTS, (0, 1), images)
    base = Pictures(PROMPTS, (0, 1), {place: picture(40 + i) for i, place in enumerate(images)})
    training = tuple(picture(n) for n in (0, 21, 22))
    return Material(pictures, base, References((), False), training, encoders)


def test_a_clip_that_was_trained_on_votes_scores_cosine_times_temperature(encoders):
    (scorer,) = preference_scorers(["tiny"], encoders.text)
    given = material(encoders)
    found = scorer.score(given)
    assert scorer.name == "preference_tiny" and set(found) == set(given.candidate.images)
    scale = float(load_clip("tiny").model.logit_scale.exp())
    for place, image in given.candidate.images.items():
        one = encoders.text.features([image])[0].double().numpy()
        text = encoders.text.text_features([PROMPTS[place[0]].plain])[0].double().numpy()
        assert found[place] == pytest.approx(scale * float(one @ text), abs=1e-5 * scale)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_laions_predictor_is_its_linear_layers(tmp_path, encoders, ending):
    """Against torch's own modules: the file holds dropouts between, which do nothing here."""
    from safetensors.torch import save_file

    width = encoders.text.text_features(["a"]).shape[1]
    head = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Linear(4, 1))
    tensors = {f"layers.{name}": value for name, value in head.state_dict().items()}
    path = tmp_path / f"marks.{ending}"
    (save_file if ending == "safetensors" else torch.save)(tensors, path)
    (scorer,) = preference_scorers([str(path)], encoders.text)
    given = material(encoders)
    features = encoders.text.features(list(given.candidate.images.values()))
    expected = head.double().eval()(features.double())[:, 0].tolist()
    assert list(scorer.score(given).values()) == pytest.approx(expected, abs=1e-5)
    assert scorer.name == "aesthetic_marks"


def test_what_is_no_preference_model_is_one_clear_line(tmp_path, encoders):
    def refused(source):
        with pytest.raises(ModelError) as caught:
            preference_scorers([str(source)], encoders.text)
        return str(caught.value)

    assert "ImageReward is no network" in refused("THUDM/ImageReward")
    assert "there is no such file" in refused(tmp_path / "nowhere.pth")
    torch.save({"layers.0.weight": torch.zeros(2, 5), "layers.0.bias": torch.zeros(2)},
               tmp_path / "two.pth")  # fmt: skip
    assert "end in one mark" in refused(tmp_path / "two.pth")
    torch.save({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}, tmp_path / "narrow.pth")
    assert "features of width 5" in refused(tmp_path / "narrow.pth")


class Corner(nn.Module):
    """A descriptor: colours of four corners."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


def scripted(module: nn.Module, path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    return str(path)


def test_where_sscd_is_there_it_decides(tmp_path, encoders):
    path = scripted(Corner(), tmp_path / "sscd.pt")
    with_sscd = load_encoders("tiny", "tiny", copies=path)
    given = replace(material(encoders), encoders=with_sscd)
    found = matches(given)
    assert found[0, 0].training == 0 and found[0, 0].similarity == pytest.approx(1, abs=1e-6)
    for place, match in found.items():
        own = with_sscd.copies.features([given.candidate.images[place]])[0]
        best = max(
            float(own @ with_sscd.copies.features([one])[0])
            for image in given.training
            for one in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        )
        assert match.similarity == pytest.approx(best, abs=1e-6)
        assert match.is_copy == (best > 0.75)


def test_what_is_no_sscd_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="there is no such file of SSCD"):
        load_encoders("tiny", "tiny", copies=str(tmp_path / "nowhere.pt"))
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ModelError, match="is no TorchScript file"):
        load_encoders("tiny", "tiny", copies=str(tmp_path / "text.pt"))
    with pytest.raises(ModelError, match="gives no vector"):
        load_encoders("tiny", "tiny", copies=scripted(nn.ReLU(), tmp_path / "relu.pt"))
    with pytest.raises(ModelError, match="takes no pictures"):
        load_encoders("tiny", "tiny", copies=scripted(nn.Linear(5, 2), tmp_path / "linear.pt"))

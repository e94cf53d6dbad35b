"""`konomi train aesthetic`, `convert`, and what `generate` says of Aesthetic Gradients."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from konomi import tasks
from konomi.cli.main import main
from konomi.config.aesthetic import AestheticConfig
from konomi.errors import DataError, FileFormatError, RecipeError
from konomi.formats.aesthetic import read_aesthetic
from konomi.generation.infotext import read_infotext
from konomi.models.clip import load_clip


@pytest.fixture(scope="module")
def liked(tmp_path_factory):
    """Two folders of two pictures each."""
    root = tmp_path_factory.mktemp("liked")
    g = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(2):
            values = g.integers(0, 256, (40, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(root / name / f"{i}.png")
    return root


def features(folder):
    images = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    return functional.normalize(load_clip("tiny").image_features(images).double(), dim=1)


def test_the_mean_of_unit_features_in_files_of_both_kinds(liked, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "aesthetic", "--images", str(liked / "a"), "--base", "tiny"]) == 0
    file = tmp_path / "runs" / "a" / "a.safetensors"
    assert capsys.readouterr().out.splitlines()[0] == "runs/a/a.safetensors"
    read = read_aesthetic(file)
    a, b = features(liked / "a"), features(liked / "b")
    torch.testing.assert_close(read.vector_P, a.mean(0).float())
    assert read.metadata == {"konomi.clip": "tiny", "konomi.images": "2"}
    weighted = tasks.train_aesthetic(
        [f"{liked / 'a'}:2", f"{liked / 'b'}:-0.5"], clip="tiny", output=tmp_path / "both.pt"
    )
    mean = (2 * a.sum(0) - 0.5 * b.sum(0)) / 5
    # As A1111 keeps it.
    assert list(torch.load(weighted).shape) == [1, 128]
    torch.testing.assert_close(torch.load(weighted)[0], mean.float())
    torch.testing.assert_close(read_aesthetic(weighted).vector_P, mean.float())

    told = tasks.convert(file, tmp_path / "a.pt")
    assert torch.equal(torch.load(told), read.vector_P[None])
    torch.save(torch.load(told)[0].half(), tmp_path / "flat.pt")
    back = tasks.convert(tmp_path / "flat.pt", tmp_path / "back.safetensors")
    torch.testing.assert_close(read_aesthetic(back).vector_P, read.vector_P, atol=1e-3, rtol=0)
    for path in (file, told, back):
        assert tasks.inspect(path).kind == "aesthetic embedding"
    with pytest.raises(RecipeError, match=r"--to: flat.pt is an aesthetic embedding"):
        tasks.convert(tmp_path / "flat.pt", tmp_path / "no", to="kohya")
    with pytest.raises(FileFormatError, match=r"ends in .safetensors or .pt"):
        tasks.convert(file, tmp_path / "a.bin")


def test_bad_input_is_one_line(liked, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(liked / "a")

    def refused(*words):
        assert main(["train", "aesthetic", *words]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "there are no pictures" in refused()
    assert "there is no nowhere" in refused("--images", "nowhere", "--base", "tiny")
    assert "base: must be set" in refused("--images", folder)
    assert "every weight is 0" in refused("--images", f"{folder}:0", "--base", "tiny")
    cancelled = refused("--images", folder, "--images", f"{folder}:-1", "--base", "tiny")
    assert "cancel out" in cancelled
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("--images", "empty", "--base", "tiny")
    (tmp_path / "there.pt").write_bytes(b"")
    line = refused("--images", folder, "--base", "tiny", "--output", "there.pt")
    assert "exists already" in line
    assert main(["check", "aesthetic", "--images", folder]) == 1
    assert "has no recipe" in capsys.readouterr().err
    assert main(["new", "aesthetic"]) == 1
    assert "has no recipe" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no image can be read"):
        tasks.train_aesthetic([str(tmp_path / "bad")], base="tiny", output=tmp_path / "x")


def test_generate_says_what_it_does_and_what_does_nothing(liked, tmp_path, capsys):
    file = tasks.train_aesthetic([str(liked / "a")], base="tiny", output=tmp_path / "mood")
    assert file == tmp_path / "mood" / "mood.safetensors"
    options = ["--base", "tiny", "--steps", "1", "--size", "64", "--seed", "1"]

    def drawn(*words):
        folder = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        command = ["generate", "a cat", *options, "--output", str(folder), "--json", *words]
        assert main(command) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (path,) = (line["picture"] for line in lines if "picture" in line)
        return path, " ".join(line["note"] for line in lines if "note" in line)

    def pixels(path):
        return Image.open(path).tobytes()

    plain, notes = drawn()
    assert not notes
    same, notes = drawn("--aesthetic-steps", "5", "--aesthetic-slerp")
    assert pixels(same) == pixels(plain)
    assert "--aesthetic-steps has no effect without --aesthetic." in notes
    assert "--aesthetic-slerp has no effect without --aesthetic." in notes
    words = ("--aesthetic", f"{file}:0.8", "--aesthetic-steps", "2", "--aesthetic-rate", "1e-3",
             "--aesthetic-text", "red", "--aesthetic-text-share", "-0.2", "--aesthetic-slerp",
             "--aesthetic-negative")  # fmt: skip
    tuned, notes = drawn(*words)
    assert not notes
    assert pixels(tuned) != pixels(plain)
    said = read_infotext(tuned).settings
    assert {name: value for name, value in said.items() if name.startswith("Aesthetic")} == {
        "Aesthetic LR": "0.001",
        "Aesthetic weight": "0.8",
        "Aesthetic steps": "2",
        "Aesthetic embedding": "mood:0.8",
        "Aesthetic slerp": "True",
        "Aesthetic text": "red",
        "Aesthetic slerp angle": "0.2",
        "Aesthetic text negative": "True",
    }
    assert pixels(drawn(*words)[0]) == pixels(tuned)
    same, notes = drawn("--aesthetic", str(file), "--aesthetic-steps", "0")
    assert pixels(same) == pixels(plain) and "tunes nothing" in notes
    same, notes = drawn("--aesthetic", f"{file}:0")
    assert pixels(same) == pixels(plain) and "strength 0" in notes
    _, notes = drawn("--aesthetic", str(file), "--aesthetic-slerp", "--guidance", "1",
                     "--aesthetic-negative", "--aesthetic-text-share", "0.5")  # fmt: skip
    for flag in ("slerp", "negative", "text-share"):
        assert f"--aesthetic-{flag} has no effect" in notes
    wrong = AestheticConfig(files=(str(liked / "a" / "0.png"),))
    with pytest.raises(FileFormatError, match=r"0\.png"):
        list(tasks.generate(["a"], base="tiny", aesthetic=wrong, output=tmp_path / "no"))
    assert not (tmp_path / "no").exists()

"""`konomi train imagic`, and `generate --edit` and `grid` with its file."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from konomi import tasks
from konomi.cli.main import main
from konomi.generation.infotext import read_infotext
from konomi.tasks.edit_strip import ETAS, EtaScore, suggested


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The folder of a short run on one wide picture that lies beside another."""
    root = tmp_path_factory.mktemp("imagic")
    values = np.random.default_rng(0).integers(0, 256, (48, 100, 3), dtype=np.uint8)
    for name in ("photo", "other"):
        Image.fromarray(values).save(root / f"{name}.png")
    command = ["train", "imagic", "--images", str(root / "photo.png"), "--base", "tiny",
               "--prompt", "a red cat", "--output", str(root / "run"), "--steps", "3",
               "data.resolution=64", "run.preview_every=3", "preview.steps=1", "run.batch_size=1",
               f"data.cache.folder={root / 'cache'}"]  # fmt: skip
    assert main(command) == 0
    return root


def test_a_photo_of_any_shape_is_edited_and_the_etas_are_measured(edited, capsys):
    file = edited / "run" / "photo.safetensors"
    stored = json.loads((edited / "run" / "photo.etas.json").read_text())
    assert [score["eta"] for score in stored["scores"]] == list(ETAS)
    assert stored["suggested"] in ETAS
    with Image.open(edited / "run" / "photo.etas.png") as strip:
        assert strip.width > strip.height
    assert len(list((edited / "run" / "previews").glob("step-000003-*.png"))) == 3
    out = edited / "out"
    quick = ["--base", "tiny", "--steps", "1", "--seed", "1", "--output", str(out)]

    def drawn(*words):
        assert main(["generate", *quick, "--edit", str(file), *words]) == 0
        captured = capsys.readouterr()
        path = captured.out.split()[-1]
        with Image.open(path) as image:
            return path, image.convert("RGB"), captured.err

    path, image, notes = drawn("--eta", "0.4")
    assert image.size == (88, 40) and not notes
    said = read_infotext(path)
    assert said.settings["Imagic eta"] == "0.4" and said.settings["CFG scale"] == "3"
    assert said.prompt == "a red cat <lora:photo:1>"
    other = drawn("--eta", "0.4", "--prompt", "a dog")[1]
    assert other.tobytes() != image.tobytes()
    assert drawn("--eta", "0.4", "--size", "64")[1].size == (64, 64)
    assert "no effect with eta 0" in drawn("a dog", "--eta", "0")[2]
    assert main(["generate", "a cat", *quick, "--eta", "0.5"]) == 0
    assert "--eta has no effect without --edit." in capsys.readouterr().err


def test_etas_on_an_axis_and_bad_input(edited, capsys):
    file = str(edited / "run" / "photo.safetensors")
    quick = ["--base", "tiny", "--steps", "1", "--output", str(edited / "grid")]
    assert main(["grid", "--x", "eta=0:1.2:3", "--edit", file, *quick]) == 0
    assert len(list((edited / "grid" / "pictures").rglob("*.png"))) == 3
    capsys.readouterr()

    def refused(*words):
        assert main(list(words)) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "eta: of nothing" in refused("grid", "a cat", "--x", "eta=0:1:2", *quick)
    assert "Leave one of them out" in refused(
        "grid", "--x", "eta=0:1:2", "--edit", file, "--add", file, *quick
    )
    assert "there is no such file" in refused("generate", "--edit", "no.safetensors", *quick)
    plain = edited / "run" / "lora.safetensors"
    shutil.copy(file, plain)
    tasks_file = tasks.inspect(plain)
    assert tasks_file.kind == "lora" and not tasks_file.unknown and not tasks_file.ignored
    train = ["train", "imagic", "--base", "tiny", "--output", str(edited / "no")]
    photo = str(edited / "photo.png")
    assert "method.prompt: must be set" in refused(*train, "--images", photo)
    words = ["--prompt", "a cat"]
    folder = edited / "two"
    folder.mkdir()
    for number in range(2):
        values = np.full((64, 64, 3), 90 * number, dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    assert "2 images, and imagic edits one" in refused(*train, *words, "--images", str(folder))
    assert "Leave --prior out" in refused(*train, *words, "--images", photo, "--prior", str(folder))
    assert "no-such" in refused(*train, *words, "--images", "no-such.png")
    assert not (edited / "no").exists()


def test_the_suggestion_is_where_both_are_high():
    scores = [
        EtaScore(0.0, 0.9, 0.1),
        EtaScore(0.4, 0.85, 0.2),
        EtaScore(0.6, 0.8, 0.35),
        EtaScore(1.0, 0.2, 0.4),
    ]
    assert suggested(scores) == 0.6
    assert suggested([EtaScore(eta, 0.5, 0.5) for eta in (0.0, 1.0)]) == 0.0

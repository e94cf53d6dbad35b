"""`konomi grid` as a user meets it."""

import json

import pytest
import torch
from PIL import Image

import konomi
from konomi.adapters.adapter import Adapter
from konomi.cli.main import main
from konomi.errors import RecipeError, RunError
from konomi.evaluation import drawing
from konomi.evaluation.grid_store import read_grid
from konomi.formats.adapter_file import write_adapter
from konomi.generation.generate import generate
from konomi.training.events import Finished, Warned


@pytest.fixture
def word(tmp_path):
    """A token of the small base."""
    path = tmp_path / "sks.safetensors"
    vectors = torch.linspace(-1, 1, 32).reshape(1, 32)
    write_adapter(Adapter(embeddings={"sks": {"text_encoder": vectors}}, name="sks"), path)
    return path


@pytest.fixture
def drawn(monkeypatch):
    requests = []

    def watched(base, asked, **options):
        requests.extend(asked)
        return generate(base, asked, **options)

    monkeypatch.setattr(drawing, "generate", watched)
    return requests


def grid(base_folder, output, *axes, **options):
    given = {"prompt": "a dog", "steps": 1, "size": "32", "output": output} | options
    return list(konomi.grid(*axes, base=str(base_folder), **given))


def test_settings_against_each_other_in_one_picture(base_folder, tmp_path, drawn):
    events = grid(base_folder, tmp_path / "out", "seed=1:3", "guidance=1,7")
    assert isinstance(events[-1], Finished)
    assert len(drawn) == 6
    stored = read_grid(tmp_path / "out")
    assert stored.x.labels == ("seed 1", "seed 2", "seed 3") and len(stored.pictures) == 6
    with Image.open(events[-1].pictures[0]) as sheet:
        assert sheet.width > 3 * 32 and sheet.height > 2 * 32
    (alone,) = konomi.generate(
        ["a dog"], base=str(base_folder), seed=2, guidance=7, steps=1, size="32",
        output=tmp_path / "alone",
    )  # fmt: skip
    with Image.open(alone) as ours, Image.open(tmp_path / "out" / stored.pictures["0-1-1"]) as his:
        pairs = zip(ours.tobytes(), his.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1
    drawn.clear()
    grid(base_folder, tmp_path / "out", "seed=1:3", "guidance=1,7")
    assert drawn == []
    page = konomi.report(tmp_path / "out")
    assert "guidance 7" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_files_weights_and_prompts_on_three_axes(base_folder, tmp_path, word):
    text = tmp_path / "text.safetensors"
    text.write_text("a web page")
    events = grid(
        base_folder,
        tmp_path / "out",
        "weight=0,1",
        f"file={word},{text},base",
        z="prompt=a sks; a dog",
        prompt="",
    )
    stored = read_grid(tmp_path / "out")
    assert len(stored.pictures) == 8
    assert not any(place.split("-")[1] == "1" for place in stored.pictures)
    # Nothing of the file that is none.
    assert len(stored.failures) == 1 and "text.safetensors" in stored.failures[0]
    assert stored.failures[0] in [e.message for e in events if isinstance(e, Warned)]
    seen = {}
    for place, path in stored.pictures.items():
        with Image.open(tmp_path / "out" / path) as picture:
            seen[place] = picture.tobytes()
    assert seen["0-0-0"] == seen["0-2-0"] == seen["0-2-1"] != seen["0-0-1"]
    assert seen["1-0-1"] == seen["1-2-1"]


def test_contradictions_are_one_line_before_anything_is_loaded(base_folder, tmp_path, word, drawn):
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match="there is no prompt"):
        grid(base_folder, out, "seed=1:2", "steps=1,2", prompt="")
    with pytest.raises(RecipeError, match="files stand on an axis already"):
        grid(base_folder, out, "seed=1:2", f"file={word}", add=str(word))
    with pytest.raises(RecipeError, match="there is no file"):
        grid(base_folder, out, "seed=1:2", "weight=0,1", add="nowhere.safetensors")
    with pytest.raises(RunError, match=r"nowhere\.safetensors"):
        grid(base_folder, out, "seed=1:2", "file=nowhere.safetensors")
    assert drawn == []


def test_the_command_says_where_it_is_and_what_has_no_effect(
    base_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["grid", "a dog", "--x", "seed=1:2", "--y", "steps=1,2", "--base", str(base_folder),
             "--size", "32", "--seed", "9"]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "seed has no effect beside the axis" in printed
    assert "Wrote grids/" in printed and "grid.png" in printed
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["picture"].endswith("grid.png")
    assert len(list((tmp_path / "grids").iterdir())) == 1
    assert main(["grid", "a dog", "--base", "tiny"]) == 2
    assert main(["grid", "a dog", "--x", "seed=1:2", "--base", "tiny"]) == 1
    assert "seed stands on two axes" in capsys.readouterr().err

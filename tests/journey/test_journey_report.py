"""The page that a run ends with: there, true to the run, and never in its way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import konomi
from konomi.cli.main import main
from konomi.errors import RunError
from konomi.evaluation.page import NAME, step_of_page
from konomi.tasks import recipe_card, reporting
from konomi.training.events import Finished, Step, Warned


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    monkeypatch.delenv("KONOMI_REPORT")


def run(recipe, **options):
    return list(konomi.train(recipe, **options))


def test_a_run_ends_with_a_page_and_is_whole_without_one(make_recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    written = reporting.write_page

    def broken(folder):
        raise ZeroDivisionError("the paper is out")

    monkeypatch.setattr(reporting, "write_page", broken)
    events = run(make_recipe(folder, steps=2))
    assert events[-1].path and events[-1].report == "" and not (folder / NAME).exists()
    # Also without previews there is a card, for its recipe.
    assert konomi.recipe_of_card(events[-1].card) and events[-1].card == str(
        folder / "sks.card.png"
    )
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert "report.html could not be written: ZeroDivisionError: the paper is out" in warned
    # What is missing is made up for, without a step and without touching the result.
    monkeypatch.setattr(reporting, "write_page", written)
    before = (folder / "sks.safetensors").stat().st_mtime_ns
    events = list(konomi.resume(folder))
    assert not [event for event in events if isinstance(event, Step)]
    assert events[-1].report == str(folder / NAME) and step_of_page(folder) == 2
    assert (folder / "sks.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="nothing is missing"):
        list(konomi.resume(folder))
    # A longer run has a page of its own; until it is written, the old one does not count.
    assert list(konomi.resume(folder, steps=3))[-1].report and step_of_page(folder) == 3


@pytest.mark.slow
def test_a_run_ends_with_a_card_that_carries_its_recipe(make_recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    asked = make_recipe(
        folder,
        steps=2,
        overrides=[
            "run.preview_every=1",
            "run.checkpoint_every=1",
            "preview.steps=1",
            "preview.size=32",
            'preview.prompts=["a sks dog", "浜辺の犬"]',
        ],
    )
    monkeypatch.setattr(recipe_card, "stacked", lambda *_: 1 / 0)
    events = run(asked)
    assert events[-1].path and events[-1].card == "" and (folder / NAME).exists()
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert any("the recipe card could not be written: ZeroDivisionError" in one for one in warned)
    monkeypatch.undo()
    monkeypatch.delenv("KONOMI_REPORT")
    # What is missing is made up for, and nothing else.
    last = list(konomi.resume(folder))[-1]
    card = folder / "sks.card.png"
    assert (last.card, last.report) == (str(card), "")
    with pytest.raises(RunError, match="nothing is missing"):
        list(konomi.resume(folder))
    with Image.open(card) as opened:
        # Two rows, the base above what was learned, and a column for each prompt.
        assert opened.width > 2 * 288 and opened.height > 2 * 288
    text = card.read_bytes()
    assert str(tmp_path).encode() not in text
    again = konomi.recipe_from_card(
        card, images=[asked.data.sources[0].path], base=asked.base, overrides=["run.steps=1"]
    )
    kept = {"output": str(folder), "steps": 2, "name": "", "device": "auto"}
    assert replace(again.run, **kept) == asked.run and again.method == asked.method
    # A branch keeps the base's pictures, so that its card has them as well.
    branch = list(konomi.branch(folder, 1, ["run.seed=5"]))[-1]
    first = sorted((folder.with_name("run-2") / "previews").glob("step-000000-*.png"))
    assert [one.read_bytes() for one in first] == [
        one.read_bytes() for one in sorted((folder / "previews").glob("step-000000-*.png"))
    ]
    assert len(first) == 2
    with Image.open(branch.card) as theirs, Image.open(card) as ours:
        assert theirs.size == ours.size


@pytest.mark.slow
def test_a_run_that_was_stopped_or_wants_none_has_no_page(make_recipe, tmp_path, monkeypatch):
    stop = konomi.Stop()
    for event in konomi.train(make_recipe(tmp_path / "stopped", steps=9), stop=stop):
        if isinstance(event, Step):
            stop.request()
    assert isinstance(event, Finished) and event.interrupted
    assert not (tmp_path / "stopped" / NAME).exists()
    # Asked for, it shows what there is.
    assert konomi.report(tmp_path / "stopped") == tmp_path / "stopped" / NAME
    monkeypatch.setenv("KONOMI_REPORT", "off")
    assert run(make_recipe(tmp_path / "none", steps=2))[-1].report == ""
    assert not (tmp_path / "none" / NAME).exists()
    with pytest.raises(RunError, match="nothing is missing"):
        list(konomi.resume(tmp_path / "none"))


def test_the_command_says_where_the_page_is(tmp_path, capsys, monkeypatch):
    line = {"step": 1, "loss": 1.0, "learning_rate": 0.1}
    (tmp_path / "log.jsonl").write_text(json.dumps(line))
    shown = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or True)
    assert main(["report", str(tmp_path), "--language", "ja", "--open"]) == 0
    assert capsys.readouterr().out == f"Look at {tmp_path / NAME}\n"
    assert shown == [(tmp_path / NAME).as_uri()]
    assert '<html lang="ja">' in (tmp_path / NAME).read_text(encoding="utf-8")
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["report", str(tmp_path), "--open"]) == 0
    assert "no browser" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_caption_of_something_else_is_found_among_others(tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(Path(konomi.__file__).parent / "builtin" / "mascot", photos)
    (photos / "mascot-2.txt").write_text("two red cars next to a tree at night")
    words = ["lora", "--images", str(photos), "--base", "tiny", "--steps", "1", "--output",
             str(tmp_path / "run"), f"data.cache.folder={tmp_path / 'cache'}"]  # fmt: skip
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["check", "--run", str(tmp_path / "run"), "--captions", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["name"] == "mascot-2.png" and found[0]["excess"] > 0
    assert main(["check", "--captions"]) == 2
    (photos / "mascot-1.png").unlink()
    assert main(["check", "--run", str(tmp_path / "run"), "--captions"]) == 1
    assert "there are 4 and 4" in capsys.readouterr().err

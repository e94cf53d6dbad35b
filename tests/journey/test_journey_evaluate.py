"""`konomi evaluate` as a user meets it: a run's saves measured beside the base, what is there not
made again, bad input in one line.
"""

import json
import shutil

import pytest
import torch
from PIL import Image

import konomi
from konomi.adapters.adapter import Adapter
from konomi.cli.main import main
from konomi.errors import KonomiError, ModelError, RecipeError, RunError
from konomi.evaluation import drawing, scoring
from konomi.evaluation.scorers.diversity import LpipsDiversity
from konomi.evaluation.store import read_summary
from konomi.formats.adapter_file import write_adapter
from konomi.generation.generate import generate
from konomi.models.random_base import random_base
from konomi.models.save import save_folder
from konomi.training.events import Finished, Prepared, Warned

QUICK = ["evaluation.steps=2", "evaluation.size=32", "evaluation.encoders.image=tiny",
         "evaluation.encoders.text=tiny"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, base_folder, pictures, cache):
    """Four steps of a LoRA with a save on the way; five pictures, so none is held out."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    recipe = konomi.recipe_from_flags(
        "lora",
        images=[pictures],
        base=str(base_folder),
        trigger="sks",
        class_noun="dog",
        output=str(folder),
        steps=4,
        overrides=[
            f'data.cache.folder="{cache}"',
            'data.resolution="64"',
            "run.save_every=2",
            "optimizer.learning_rate=0.01",
        ],
    )
    for _ in konomi.train(recipe):
        pass
    return folder


@pytest.fixture
def evaluated(run, tmp_path):
    def events(*sources, **options):
        given = {
            "seeds": 1,
            "prompts": ["a sks dog", "a dog"],
            "output": tmp_path / "out",
            "settings": QUICK,
        } | options
        return list(konomi.evaluate(sources or [run], **given))

    return events


@pytest.fixture
def drawn(monkeypatch):
    requests = []

    def watched(base, asked, **options):
        requests.extend(asked)
        return generate(base, asked, **options)

    monkeypatch.setattr(drawing, "generate", watched)
    return requests


def notes(events):
    return [event.message for event in events if isinstance(event, Warned)]


def kept(folder):
    """Every file of a result but the page."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".html" and path.name != "run.lock"
    }


@pytest.mark.slow
def test_every_save_of_a_run_is_measured_beside_the_base(evaluated, run, tmp_path):
    events = evaluated(weights=[0.5, 1], prompts=None)
    assert isinstance(events[-1], Finished)
    summary = read_summary(tmp_path / "out")
    ids = ["base", "lora-step2@0.5", "lora-step2@1", "lora-step4@0.5", "lora-step4@1"]
    assert [candidate.id for candidate in summary.candidates] == ids
    assert summary.candidates[1].label == "step 2 at weight 0.5"
    assert summary.candidates[-1].step == 4
    assert not summary.references_held_out and summary.references == 5
    assert any("were trained on, which flatters" in note for note in notes(events))
    assert all("trained on" in scorer.note for scorer in summary.scorers if "like" in scorer.name)
    for candidate in summary.candidates:
        assert {"likeness", "prompt_following"} <= candidate.scores.keys()
        assert len(candidate.pictures) == 8
        assert all((tmp_path / "out" / path).is_file() for path in candidate.pictures.values())
    last = [event for event in events if isinstance(event, Prepared)]
    assert [(e.done, e.total) for e in last if e.what == "pictures"][-1] == (40, 40)
    rows = (tmp_path / "out" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 40
    text = (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in json.loads(text)["candidates"][1]["pictures"]["0-0"]


@pytest.mark.slow
def test_a_picture_is_what_generate_draws_with_the_file(evaluated, run, base_folder, tmp_path):
    evaluated(weights=[0.5], prompts=["a sks dog"], seeds=1)
    (path,) = konomi.generate(
        ["a sks dog"],
        base=str(base_folder),
        add=[f"{run / 'sks.safetensors'}:0.5"],
        seed=0,
        steps=2,
        size="32",
        output=tmp_path / "drawn",
    )
    measured = tmp_path / "out" / "pictures" / "lora-step4@0.5" / "0-0.png"
    with Image.open(path) as ours, Image.open(measured) as theirs:
        assert ours.tobytes() == theirs.tobytes()
        assert "<lora:sks:0.5>" in theirs.info["parameters"]


def test_what_is_there_is_neither_drawn_nor_measured_again(evaluated, drawn, tmp_path, monkeypatch):
    said = notes(evaluated())
    first = kept(tmp_path / "out")
    assert (
        "not measured: memorisation, held_out_loss: no pictures were held out of training." in said
    )
    of_class = [one.scores["class_loss"] for one in read_summary(tmp_path / "out").candidates]
    assert of_class[0].base is None and {one.base for one in of_class[1:]} == {of_class[0].mean}
    assert len({one.mean for one in of_class}) == 3
    # A score that needs a package nobody asked for is missed in the record alone.
    assert not any("lpips" in note for note in said)
    lacking = any("lpips" in note for note in read_summary(tmp_path / "out").notes)
    assert lacking == (not LpipsDiversity().available())
    drawn.clear()
    monkeypatch.setattr(scoring, "measured", None)
    monkeypatch.setattr("konomi.evaluation.measure.measured", None)
    monkeypatch.setattr("konomi.evaluation.fixed_noise.picture_losses", None)
    evaluated()
    assert drawn == []
    assert kept(tmp_path / "out") == first
    monkeypatch.undo()
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "scores.jsonl").unlink()
    (tmp_path / "out" / "pictures" / "lora-step4@1" / "scores.json").unlink()
    (tmp_path / "out" / "pictures" / "lora-step2@1" / "1-0.png").unlink()
    (tmp_path / "out" / "pictures" / "lora-step2@1" / "losses.json").write_text("{")
    evaluated()
    assert kept(tmp_path / "out") == first


@pytest.mark.slow
def test_the_base_is_drawn_once_across_folders(evaluated, drawn, tmp_path):
    evaluated()
    drawn.clear()
    evaluated(output=tmp_path / "second")
    assert len(drawn) == 2 * 2


@pytest.mark.slow
def test_pictures_that_are_given_are_compared_with(evaluated, pictures, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    Image.new("RGB", (64, 64), "green").save(new / "new.png")
    shutil.copy(pictures / "0.png", new / "copy.png")
    events = evaluated(images=[new])
    summary = read_summary(tmp_path / "out")
    assert summary.references == 1 and summary.references_held_out
    assert any("1 of 2 pictures were trained on" in note for note in notes(events))


@pytest.mark.slow
def test_held_out_pictures_serve(make_recipe, tmp_path, evaluated):
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(9):
        Image.new("RGB", (64, 64), (25 * index, 90, 200)).save(folder / f"{index}.png")
    where = f'data.sources.0.path="{folder}"'
    for _ in konomi.train(make_recipe(tmp_path / "held", steps=1, overrides=[where])):
        pass
    evaluated(tmp_path / "held")
    summary = read_summary(tmp_path / "out")
    assert summary.references == 1 and summary.references_held_out
    assert all(not scorer.note for scorer in summary.scorers)
    tuned = summary.candidates[1].scores
    assert {"memorisation", "held_out_loss", "class_loss"} <= tuned.keys()
    assert tuned["memorisation"].count == 8 + 1 and 0 <= tuned["memorisation"].mean <= 1
    assert tuned["held_out_loss"].difference[0] == pytest.approx(
        tuned["held_out_loss"].mean - summary.candidates[0].scores["held_out_loss"].mean
    )
    # With 0 nothing of that is measured, and nothing said of it.
    said = notes(evaluated(tmp_path / "held", settings=[*QUICK, "evaluation.losses=0"]))
    assert not any("loss" in note for note in said)
    assert "class_loss" not in read_summary(tmp_path / "out").candidates[1].scores


@pytest.mark.slow
def test_bare_files_of_every_kind(evaluated, run, base_folder, tmp_path):
    whole = tmp_path / "whole"
    save_folder(random_base("sd1", seed=1), whole, dtype=torch.float32)
    adapter = run / "sks.safetensors"
    events = evaluated(
        adapter, whole, base=str(base_folder), class_noun="dog", weights=[0, 1], prompts=None
    )
    summary = read_summary(tmp_path / "out")
    assert [one.id for one in summary.candidates[1:]] == ["sks@0", "sks@1", "whole@0", "whole@1"]
    assert summary.prompts[0].text == "a sks dog"
    assert not any(one.failure for one in summary.candidates)
    assert any("no picture to compare with" in note for note in notes(events))
    assert "likeness" not in summary.candidates[1].scores
    base, still, _, mixed, other = (summary.candidates[i].pictures["0-0"] for i in range(5))
    seen = {}
    for name, path in {"base": base, "still": still, "mixed": mixed, "other": other}.items():
        with Image.open(tmp_path / "out" / path) as picture:
            seen[name] = picture.tobytes()
    assert seen["base"] == seen["still"] == seen["mixed"] != seen["other"]


def test_a_file_that_does_not_fit_is_a_row_with_its_reason(evaluated, run, base_folder, tmp_path):
    word = Adapter(embeddings={"odd": {"text_encoder": torch.zeros(1, 7)}}, name="odd")
    write_adapter(word, tmp_path / "odd.safetensors")
    events = evaluated(run, tmp_path / "odd.safetensors")
    assert isinstance(events[-1], Finished)
    *_, failed = read_summary(tmp_path / "out").candidates
    assert failed.id == "odd@1" and failed.scores == {} and failed.pictures == {}
    assert failed.failure and "\n" not in failed.failure
    (tmp_path / "text.safetensors").write_text("a web page")
    with pytest.raises(RunError, match=r"text\.safetensors"):
        evaluated(tmp_path / "text.safetensors", base=str(base_folder), trigger="sks")


@pytest.mark.slow
def test_a_picture_that_is_not_a_number_costs_its_row(evaluated, run, tmp_path, monkeypatch):
    def broken(base, requests, **options):
        if options["origin"].adapters and options["origin"].adapters[0].name == "sks":
            raise ModelError("The picture of seed 0 is not a number.")
        return generate(base, requests, **options)

    monkeypatch.setattr(drawing, "generate", broken)
    evaluated()
    rows = {one.id: one.failure for one in read_summary(tmp_path / "out").candidates}
    assert rows["lora-step2@1"] == "" and "not a number" in rows["lora-step4@1"]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_files(evaluated, tmp_path, monkeypatch):
    from konomi.storage import atomic

    class Killed(BaseException):
        pass

    evaluated(output=tmp_path / "whole")
    whole = kept(tmp_path / "whole")
    written = []

    def dies(path):
        written.append(path)
        if len(written) == 4:
            raise Killed

    kills = 0
    for _ in range(20):
        written.clear()
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "sync_file", dies)
            # A killed process tidies nothing up, and is gone when the next one looks.
            patch.setattr(atomic, "_remove", lambda path: None)
            patch.setattr(atomic.process, "is_alive", lambda *_: False)
            try:
                evaluated(output=tmp_path / "out")
                break
            except Killed:
                kills += 1
    assert 2 <= kills < 20
    monkeypatch.setattr(atomic.process, "is_alive", lambda *_: False)
    evaluated(output=tmp_path / "out")
    assert kept(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(evaluated, drawn, tmp_path, monkeypatch):
    from konomi.storage import atomic

    written = []

    def full(path):
        written.append(path)
        if len(written) > 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sync_file", full)
        with pytest.raises(RunError, match="disk is full"):
            evaluated()
    there = len(list((tmp_path / "out").rglob("*.png")))
    assert there >= 1
    drawn.clear()
    evaluated()
    assert 0 < len(drawn) < 6


WRONG = [
    ({"prompts": "empty.txt"}, "holds no prompt"),
    ({"settings": ["evaluation.encoders.image=nowhere"]}, "nowhere: no folder of a network"),
    ({"settings": ["run.steps=3"]}, "only settings of the section evaluation"),
    ({"settings": ["evaluation.stepz=3"]}, "Did you mean evaluation.steps"),
    ({"weights": [1000]}, "at most 100"),
    ({"seeds": 0}, "evaluation.seeds is 0; at least 1"),
    ({"images": ["none"]}, "none"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_before_anything_is_drawn(
    evaluated, drawn, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(KonomiError, match=message) as caught:
        evaluated(**options)
    assert "\n" not in str(caught.value)
    assert drawn == []


def test_files_without_base_or_trigger_say_what_is_missing(evaluated, run, base_folder, tmp_path):
    with pytest.raises(RecipeError, match="base: must be set"):
        evaluated(run / "sks.safetensors")
    whole = tmp_path / "whole"
    shutil.copytree(base_folder, whole)
    with pytest.raises(RecipeError, match="no trigger is known"):
        evaluated(whole, base=str(base_folder), prompts=None)
    with pytest.raises(RecipeError, match="no such run or file"):
        evaluated(tmp_path / "nothing")


def test_the_command_prints_a_table_and_the_suggestion_last(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--seeds", "1", "--output", str(tmp_path / "out"), *QUICK]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "likeness ↑" in printed and "step 2" in printed
    assert "which flatters" in printed
    summary = read_summary(tmp_path / "out")
    last = printed.strip().splitlines()[-1]
    assert last == (summary.suggestion.command or last)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["id"] == "base"
    assert main(["evaluate"]) == 2
    assert main(["evaluate", str(run), "--weights", "a,b"]) == 1
    assert "--weights is 'a,b'" in capsys.readouterr().err

"""`konomi benchmark dreambooth`: subjects one after another, the paper's rows under ours, gone on
with where it was.
"""

import json
import shutil

import pytest

import konomi
from konomi.cli.benchmarking import benchmark
from konomi.cli.comparison_view import follow_benchmark
from konomi.errors import DataError, RecipeError
from konomi.evaluation.store import read_summary
from konomi.tasks.benchmarking import SubjectBegun
from konomi.tasks.candidate_processes import FromRun
from konomi.training.events import Finished, Step, Warned

LIST = """Classes

subject_name,class
dog,dog
vase,vase
clock,clock

Object Prompts
'a {0} {1} in the jungle'.format(unique_token, class_token),

Live Subject Prompts
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
"""


@pytest.fixture
def data(tmp_path, pictures):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "prompts_and_classes.txt").write_text(LIST)
    shutil.copytree(pictures, folder / "dog")
    (folder / "vase").mkdir()
    shutil.copy(pictures / "1.png", folder / "vase" / "0.png")
    return folder


@pytest.fixture
def measured(quick_comparison, base_folder, cache, data):

    def events(**options):
        given = {"data": data, "base": str(base_folder), "budget": "steps=1", "output": "out"}
        settings = [one for one in quick_comparison if "prompts" not in one]
        return konomi.benchmark_dreambooth(
            ["lora"], overrides=[f'data.cache.folder="{cache}"', *settings], **(given | options)
        )

    return events


@pytest.mark.slow
def test_each_subject_is_learned_alone_by_its_own_prompts(measured, tmp_path, capsys):
    seen = list(measured())
    assert [one.name for one in seen if isinstance(one, SubjectBegun)] == ["dog", "vase"]
    assert any(isinstance(one, Warned) and "clock" in one.message for one in seen)
    assert isinstance(seen[-1], Finished)
    drawn = {
        name: [prompt.text for prompt in read_summary(tmp_path / "out/subjects" / name).prompts]
        for name in ("dog", "vase")
    }
    assert drawn == {
        "dog": ["a sks dog wearing a red hat", "a dog"],
        "vase": ["a sks vase in the jungle", "a vase"],
    }
    found = json.loads((tmp_path / "out" / "dreambooth.json").read_text())
    base, lora = found["rows"]
    assert (base["id"], lora["id"], lora["subjects"], found["subjects"]) == ("base", "lora", 2, 2)
    means = [
        next(c for c in read_summary(tmp_path / "out/subjects" / name).candidates if c.run)
        .scores["prompt_following"]
        .mean
        for name in ("dog", "vase")
    ]
    assert lora["values"]["CLIP-T"] == pytest.approx(sum(means) / 2)
    table = (tmp_path / "out" / "dreambooth.md").read_text()
    assert "| DreamBooth (Stable Diffusion), paper | 0.668 | 0.803 | 0.305 |" in table

    # Asked again it trains nothing, and shows the table.
    again = list(measured())
    assert not any(isinstance(one, FromRun) and isinstance(one.event, Step) for one in again)
    capsys.readouterr()
    assert follow_benchmark(iter(again), as_json=False) == 0
    shown = capsys.readouterr().out
    assert "dog, subject 1 of 2" in shown and "0.668" in shown and "dreambooth.md" in shown


def test_a_subject_that_is_not_there_is_one_line(measured):
    with pytest.raises(RecipeError, match="--subject dig: is not there; there are dog, vase"):
        list(measured(subjects=["dig"]))


def test_settings_may_stand_after_options(tmp_path, capsys):
    words = ["dreambooth", "--data", str(tmp_path), "lora", "--base", "tiny", "run.steps=1"]
    with pytest.raises(DataError, match="is not the DreamBooth data set"):
        benchmark(words)
    with pytest.raises(SystemExit):
        benchmark([word for word in words if word != "lora"])
    assert "name the methods to measure" in capsys.readouterr().err

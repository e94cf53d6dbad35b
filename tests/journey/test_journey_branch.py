"""A branch: from a checkpoint on under other settings, and what it remembers of where it came
from.
"""

import json
import shutil
from pathlib import Path

import pytest

import konomi
from konomi.cli.main import main
from konomi.errors import RecipeError, RunError
from konomi.training.events import Step, Warned
from konomi.training.log import read_log
from konomi.training.parentage import Change, read_origins

OFTEN = ("run.checkpoint_every=2", "run.keep_checkpoints=9", "run.trackers=[]")


@pytest.fixture(scope="module")
def trained(base_folder, pictures, cache, tmp_path_factory):
    """Six steps with a checkpoint after every second one."""
    folder = tmp_path_factory.mktemp("parent") / "first"
    recipe = konomi.recipe_from_flags(
        "lora",
        images=[pictures],
        base=str(base_folder),
        trigger="sks",
        output=str(folder),
        steps=6,
        overrides=[
            *OFTEN,
            f'data.cache.folder="{cache}"',
            'data.resolution="64"',
            "optimizer.learning_rate=0.01",
            "method.rank=4",
        ],
    )
    for _ in konomi.train(recipe):
        pass
    return folder


@pytest.fixture
def parent(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs" / "first"))


def steps_and_lines(events):
    events = list(events)
    return (
        [event.step for event in events if isinstance(event, Step)],
        [event.message for event in events if isinstance(event, Warned)],
    )


def losses(run):
    return [entry["loss"] for entry in read_log(run)]


def test_a_branch_goes_on_from_the_checkpoint_under_other_settings(parent, same_tensors, capsys):
    same, other = parent.with_name("same"), parent.with_name("other")
    steps, lines = steps_and_lines(konomi.branch(parent, 2, output=same))
    assert steps == [3, 4, 5, 6] and "repeats" in lines[-1]
    # Nothing changed: bit for bit what the parent did from there on.
    assert same_tensors(same / "sks.safetensors", parent / "sks.safetensors")
    assert losses(same) == losses(parent)

    change = "optimizer.learning_rate=0.0001"
    assert main(["branch", str(parent), "--at", "4", change, "--output", str(other)]) == 0
    said = capsys.readouterr()
    assert "optimizer.learning_rate: 0.01 up to step 4, 0.0001 from here on." in said.err + said.out
    assert losses(other)[:4] == losses(parent)[:4]
    assert not same_tensors(other / "sks.safetensors", parent / "sks.safetensors")
    (origin,) = read_origins(other)
    assert (origin.run, origin.step) == ("../first", 4)
    assert origin.changed == (Change("optimizer.learning_rate", 0.01, 0.0001),)


@pytest.mark.slow
def test_a_branch_of_a_branch_knows_its_whole_line_and_can_be_resumed(parent, tmp_path):
    stop = konomi.Stop()
    second = parent.with_name("second")
    for event in konomi.branch(
        parent, 2, ["run.steps=8", "data.captions.shuffle=true"], output=second, stop=stop
    ):
        if isinstance(event, Step) and event.step == 4:
            stop.request()
    # Its checkpoints are its own run's: no change has to be allowed.
    assert steps_and_lines(konomi.resume(second))[0] == [6, 7, 8]
    third = tmp_path / "elsewhere" / "third"
    for _ in konomi.branch(second, 8, ["run.steps=9"], output=third):
        pass
    shutil.rmtree(parent)
    shutil.rmtree(second)
    assert [(origin.name, origin.step) for origin in read_origins(third)] == [
        ("second", 8), ("first", 2),
    ]  # fmt: skip
    assert (third / read_origins(third)[1].run).resolve() == parent.resolve()


@pytest.mark.slow
def test_without_a_name_it_lies_beside_the_run(parent):
    for _ in konomi.branch(parent, 4, ["run.seed=3"]):
        pass
    assert (parent.with_name("first-2") / "sks.safetensors").is_file()


@pytest.mark.parametrize(
    ("at", "changes", "words"),
    [
        (3, [], "no checkpoint of step 3; there are those of 2, 4, 6"),
        (6, [], "Add run.steps=N"),
        (4, ["method.rank=2"], "method.rank: cannot change in a branch"),
        (4, ["base=tiny"], "base: cannot change"),
        (4, ["optimizer.kind=adafactor"], "optimizer.kind: cannot change"),
        (4, ["optimizer.betas=0.5,0.9"], "optimizer.betas"),
        (4, ["optimizer.ema_decay=0.9"], "holds no average"),
        (4, ["optimizer.learning_rat=1"], "no such setting"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_and_leaves_no_folder(parent, at, changes, words):
    output = parent.with_name("other")
    with pytest.raises((RecipeError, RunError), match=words):
        list(konomi.branch(parent, at, changes, output=output))
    assert not output.exists()


@pytest.mark.slow
def test_the_run_itself_and_one_that_is_there_are_not_replaced(parent):
    with pytest.raises(RunError, match="is the run that is to be left"):
        list(konomi.branch(parent, 2, output=parent, overwrite=True))
    other = parent.with_name("other")
    list(konomi.branch(parent, 2, output=other))
    with pytest.raises(RunError, match="holds a run already"):
        list(konomi.branch(parent, 2, output=other))
    list(konomi.branch(parent, 4, ["run.seed=2"], output=other, overwrite=True))
    assert read_origins(other)[0].step == 4


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"origins": 3}', '{"origins": [{"run": 3, "step": 1}]}', "null"]
)
def test_a_damaged_note_is_no_parent(tmp_path, content):
    (tmp_path / "parent.json").write_text(content)
    assert read_origins(tmp_path) == ()
    good = {"run": "../a", "step": 3, "changed": [{"path": "x", "before": 1, "after": 2}, 7]}
    (tmp_path / "parent.json").write_text(json.dumps({"origins": [good, {"run": "", "step": 1}]}))
    assert [origin.run for origin in read_origins(tmp_path)] == ["../a"]

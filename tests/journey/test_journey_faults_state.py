"""A run folder that something happened to: cut off after the last step, made by a stranger,
stopped while read.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi
from konomi.errors import KonomiError, RunError
from konomi.generation.infotext import png_bytes
from konomi.tasks.run_folder import moved, recipe_of_run
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.events import Checkpointed, Finished, Prepared, Saved, Step, Validated, Warned
from konomi.training.log import read_log

PICTURES = ["run.preview_every=2", "preview.steps=1", 'preview.prompts=["a sks dog"]']


@pytest.fixture(scope="module")
def one_run(base_folder, pictures, cache, tmp_path_factory):
    """A run of two steps with everything it leaves; not to be touched."""
    folder = tmp_path_factory.mktemp("one") / "run"
    overrides = [
        f'data.cache.folder="{cache}"',
        'data.resolution="64"',
        "run.batch_size=2",
        "run.validate_every=2",
        "validation.fraction=0.4",
        "validation.timesteps=1",
        *PICTURES,
    ]
    recipe = konomi.recipe_from_flags(
        "lora",
        images=[pictures],
        base=str(base_folder),
        trigger="sks",
        class_noun="dog",
        output=str(folder),
        steps=2,
        overrides=overrides,
    )
    list(konomi.train(recipe))
    return folder


@pytest.fixture
def finished(one_run, tmp_path):
    """A copy of it to play with."""
    return shutil.copytree(one_run, tmp_path / "run")


def kinds(events):
    return [type(event).__name__ for event in events if not isinstance(event, Warned | Prepared)]


def test_a_finished_run_makes_up_for_what_is_missing_and_trains_nothing(
    finished, same_tensors, tmp_path
):
    whole = shutil.copytree(finished, tmp_path / "whole")
    (finished / "sks.safetensors").unlink()
    events = list(konomi.resume(finished))
    assert kinds(events) == ["Started", "Checkpointed", "Saved", "Finished"]
    assert events[-1].path == str(finished / "sks.safetensors")
    assert same_tensors(finished / "sks.safetensors", whole / "sks.safetensors")

    (finished / "previews" / "step-000002-00.png").unlink()
    assert kinds(konomi.resume(finished)) == ["Started", "Checkpointed", "Previewed", "Finished"]
    drawn, before = (
        np.asarray(Image.open(f / "previews" / "step-000002-00.png")) for f in (finished, whole)
    )
    assert np.array_equal(drawn, before)

    log = finished / "log.jsonl"
    log.write_text(
        "".join(
            line
            for line in log.read_text().splitlines(keepends=True)
            if '"validation"' not in line or '"step": 0' in line
        )
    )
    assert kinds(konomi.resume(finished)) == ["Started", "Checkpointed", "Validated", "Finished"]
    with pytest.raises(RunError, match=r"all 2 steps are done, and nothing is missing.*--steps N"):
        list(konomi.resume(finished))


def test_a_longer_run_that_dies_before_its_result_does_not_pass_off_the_earlier_one(
    make_recipe, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    list(konomi.train(make_recipe(folder, steps=2)))
    earlier = (folder / "sks.safetensors").read_bytes()

    def die(*arguments, **options):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("konomi.tasks.run_outputs.save_result", die)
        with pytest.raises(RunError):
            list(konomi.resume(folder, steps=3))
    assert (folder / "sks.safetensors").read_bytes() == earlier
    assert kinds(konomi.resume(folder)) == ["Started", "Checkpointed", "Saved", "Finished"]
    assert (folder / "sks.safetensors").read_bytes() != earlier


def test_fewer_steps_than_are_done_are_no_finished_run(finished):
    with pytest.raises(RunError, match="2 steps are done already, more than 1"):
        list(konomi.resume(finished, steps=1))


def test_epochs_are_a_new_total_as_well(finished):
    assert list(konomi.resume(finished, epochs=3))[-1].step == 3 * 2
    for wrong in ({"epochs": 0}, {"steps": 2, "epochs": 2}):
        with pytest.raises(KonomiError, match="--epochs"):
            list(konomi.resume(finished, **wrong))


def test_a_preview_that_raises_anything_costs_a_note(
    make_recipe, tmp_path, monkeypatch, same_tensors
):
    quiet, folder = tmp_path / "quiet", tmp_path / "run"
    list(konomi.train(make_recipe(quiet, steps=2)))
    errors = [KeyError("x"), AssertionError(), RecursionError("deep")]
    left = list(errors)

    def broken(base, requests, **options):
        raise left.pop(0)
        yield

    monkeypatch.setattr("konomi.tasks.previewing.generate", broken)
    events = list(
        konomi.train(make_recipe(folder, steps=2, overrides=[*PICTURES, "run.preview_every=1"]))
    )
    notes = [event.message for event in events if isinstance(event, Warned)]
    told = [note for note in notes if "the previews of step" in note]
    assert len(told) == 3
    assert all(type(error).__name__ in note for error, note in zip(errors, told))
    # The base was whole again after each: what was learned is the same, bit for bit.
    assert same_tensors(quiet / "sks.safetensors", folder / "sks.safetensors")


def test_a_disk_that_refuses_a_preview_once_costs_nothing(make_recipe, tmp_path, monkeypatch):
    refused = []

    def once(picture):
        if len(refused) % 2 == 0:
            refused.append(OSError(5, "Input/output error"))
            raise refused[-1]
        refused.append(None)
        return png_bytes(picture)

    monkeypatch.setattr("konomi.tasks.previewing.png_bytes", once)
    folder = tmp_path / "run"
    events = list(konomi.train(make_recipe(folder, steps=3, overrides=PICTURES)))
    assert not [
        event
        for event in events
        if isinstance(event, Warned) and "could not be drawn" in event.message
    ]
    assert len(refused) == 2 * 3
    assert sorted(p.name for p in (folder / "previews").iterdir()) == [
        f"step-00000{n}-00.png" for n in (0, 2, 3)
    ]


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_lines_in_the_next_log(
    finished, tmp_path
):
    whole = shutil.copytree(finished, tmp_path / "whole")
    log = finished / "log.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert '"step": 0' in log.read_text()
    shutil.rmtree(finished / "checkpoints")
    (finished / "sks.safetensors").unlink()
    list(konomi.train(moved(recipe_of_run(finished), finished)))
    kept = [
        [(entry["step"], entry["loss"]) for entry in read_log(folder)]
        for folder in (finished, whole)
    ]
    assert kept[0] == kept[1]


def test_no_more_checkpoints_are_kept_where_the_deleting_was_cut_off(make_recipe, tmp_path):
    folder = tmp_path / "run"
    often = ["run.checkpoint_every=1", "run.keep_checkpoints=5"]
    list(konomi.train(make_recipe(folder, steps=3, overrides=[*often, *PICTURES])))
    # As if it had been killed between writing its last checkpoint and deleting the one that is too
    # many.
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("keep_checkpoints = 5", "keep_checkpoints = 2"))
    (folder / "sks.safetensors").unlink()
    assert len(checkpoint_paths(folder / "checkpoints")) == 3
    cut_off = folder / "checkpoints" / "step-000003" / ".partial-00000000-1-1-00000000-result.json"
    cut_off.touch()
    os.utime(cut_off, (0, 0))
    list(konomi.resume(folder))
    assert not cut_off.exists()
    assert [path.name for path in checkpoint_paths(folder / "checkpoints")] == [
        "step-000002",
        "step-000003",
    ]


def test_a_validation_that_raises_costs_a_note(make_recipe, tmp_path, monkeypatch):
    calls = []

    def sometimes(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("the third is bad")
        return 0.5

    monkeypatch.setattr("konomi.tasks.measuring.validation_loss", sometimes)
    overrides = ["run.validate_every=1", "validation.fraction=0.4"]
    events = list(konomi.train(make_recipe(tmp_path / "run", steps=2, overrides=overrides)))
    assert [event.step for event in events if isinstance(event, Validated)] == [0, 2]
    assert any(
        "step 1 could not be validated: RuntimeError: the third is bad" in e.message
        for e in events
        if isinstance(e, Warned)
    )
    assert isinstance(events[-1], Finished)


def test_an_interrupt_within_a_preview_is_no_failure_of_it(make_recipe, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("konomi.tasks.run_previews.draw_previews", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(konomi.train(make_recipe(tmp_path / "run", steps=2, overrides=PICTURES)))


@pytest.mark.parametrize("name", ["log.jsonl", "run.lock", "recipe.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "victim"])
def test_a_run_folder_from_elsewhere_reads_and_writes_nothing_outside(
    finished, tmp_path, name, kind
):
    folder = finished
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else victim)
    with pytest.raises(KonomiError, match=name.replace(".", r"\.")):
        list(konomi.resume(folder, steps=3))
    assert victim.read_text() == "mine"


def test_a_stop_right_after_a_checkpoint_does_not_write_it_again(make_recipe, tmp_path):
    """Writing it once more would move the only good one aside, for a moment."""
    folder = tmp_path / "run"
    events = konomi.train(
        make_recipe(folder, steps=9, overrides=["run.checkpoint_every=2", "run.keep_checkpoints=1"])
    )
    written = []
    previous = signal.getsignal(signal.SIGTERM)
    for event in events:
        if isinstance(event, Step) and event.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if isinstance(event, Checkpointed):
            written.append((event.step, Path(event.path).stat().st_ino))
    assert written == [written[0]] * 2
    assert written[0][0] == 2
    assert isinstance(event, Finished)
    assert event.interrupted
    assert signal.getsignal(signal.SIGTERM) is previous


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "place", ["konomi.training.checkpoint.sha256_file", "konomi.tasks.training.prepare"]
)
def test_a_signal_before_the_first_step_ends_the_command_at_once(
    finished, monkeypatch, number, place
):
    from konomi.cli.main import main

    folder = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def endless(*arguments):
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(place, endless)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    assert main(["resume", str(folder), "--steps", "3"]) == 130
    assert time.monotonic() - started < 30
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_saved_is_still_said_when_a_tracker_says_nothing_sensible(
    make_recipe, tmp_path, monkeypatch
):
    class Mute(Exception):
        def __str__(self):
            raise ValueError("not even that")

    def broken(self, run):
        raise Mute

    monkeypatch.setattr("konomi.training.trackers.tensorboard.TensorBoard.__init__", broken)
    events = list(konomi.train(make_recipe(tmp_path / "run", steps=2)))
    assert any(isinstance(event, Saved) for event in events)
    assert any(
        "tensorboard failed" in event.message for event in events if isinstance(event, Warned)
    )


def test_weights_come_back_whatever_an_undoing_raises():
    from konomi.adapters.apply import Attachment

    weight = torch.nn.Parameter(torch.ones(3))
    attachment = Attachment(())
    attachment.keep(weight, on_cpu=False)
    attachment.on_detach(lambda: 1 / 0)
    weight.data += 1
    with pytest.raises(ZeroDivisionError):
        attachment.detach()
    assert torch.equal(weight, torch.ones(3))


def test_a_run_shows_pictures_by_itself_and_says_what_to_type(
    recipe_file, tmp_path, monkeypatch, capsys
):
    from konomi.cli.main import main

    monkeypatch.delenv("KONOMI_PREVIEWS")
    recipe = recipe_file(
        tmp_path / "run", steps=3, overrides=['preview.prompts=["a sks dog"]', "preview.steps=1"]
    )
    assert main(["train", str(recipe)]) == 0
    out = capsys.readouterr().out
    drawn = sorted(path.name for path in (tmp_path / "run" / "previews").iterdir())
    assert drawn == [f"step-{step:06d}-00.png" for step in (0, 1, 2, 3)]
    assert "note: previews: 1 picture takes" in out
    *_, pictures, draw, longer = out.splitlines()
    assert pictures == f"Pictures: {tmp_path / 'run' / 'previews' / 'step-000003-00.png'}"
    assert draw.startswith("Next: konomi generate 'a sks dog' --base ")
    assert draw.endswith(f"--add {tmp_path / 'run' / 'sks.safetensors'}")
    assert longer == f"Or:   konomi resume {tmp_path / 'run'} --steps 6"


def test_checkpoints_and_saves_come_and_stay_as_the_recipe_says(make_recipe, tmp_path):
    settings = [
        "run.checkpoint_every=1",
        "run.keep_checkpoints=3",
        "run.save_every=2",
        "run.trackers=[]",
    ]
    list(konomi.train(make_recipe(tmp_path / "often", steps=5, overrides=settings)))
    kept = [path.name for path in checkpoint_paths(tmp_path / "often" / "checkpoints")]
    assert kept == ["step-000003", "step-000004", "step-000005"]
    assert len(list((tmp_path / "often").glob("*.safetensors"))) == 3
    assert not (tmp_path / "often" / "tensorboard").exists()
    events = list(
        konomi.train(make_recipe(tmp_path / "once", steps=2, overrides=["run.checkpoint_every=0"]))
    )
    assert [event.step for event in events if isinstance(event, Checkpointed)] == [2]


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_no_steps_at_all_are_refused(recipe_file, tmp_path, capsys, steps):
    from konomi.cli.main import main

    recipe = recipe_file(tmp_path / "run")
    for what in ([str(recipe)], ["lora", "--images", str(tmp_path), "--base", "tiny"]):
        assert main(["train", *what, "--steps", steps]) == 1
        assert f"--steps is {steps}; at least 1" in capsys.readouterr().err


def test_what_a_run_was_cut_off_before_is_made_up_for_after_its_checkpoint(
    make_recipe, tmp_path, monkeypatch
):
    """Struck between a checkpoint and the save and preview of the same step."""
    folder = tmp_path / "run"
    overrides = [*PICTURES, "run.checkpoint_every=2", "run.save_every=2"]

    def die(*arguments, **options):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("konomi.tasks.run_outputs.save_result", die)
        with pytest.raises(RunError):
            list(konomi.train(make_recipe(folder, steps=3, overrides=overrides)))
    events = [type(event).__name__ for event in konomi.resume(folder)]
    assert events[events.index("Started") :][:3] == ["Started", "Saved", "Previewed"]
    assert (folder / "sks-step00000002.safetensors").is_file()
    assert (folder / "previews" / "step-000002-00.png").is_file()

"""Disks and folders that fail under a run, and interrupts that hit between two commands'
imports.
"""

import os
import signal
import time

import pytest

import konomi
from konomi.cli.main import main
from konomi.errors import ModelError, RunError
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.events import Checkpointed, Started


def test_a_run_folder_that_vanishes_is_an_error_at_the_next_save(make_recipe, tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    events = konomi.train(make_recipe(folder, steps=6, overrides=["run.checkpoint_every=2"]))
    with pytest.raises(RunError, match="gone or was moved"):
        for event in events:
            if isinstance(event, Checkpointed):
                folder.rename(moved)
    assert not folder.exists()
    assert list(konomi.resume(moved))[-1].step == 6


def test_a_disk_too_full_for_a_checkpoint_is_known_before_the_first_step(
    make_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("konomi.storage.atomic.shutil.disk_usage", lambda path: _Usage())
    seen = []
    with pytest.raises(RunError, match="are needed and 1000 bytes are free"):
        seen.extend(konomi.train(make_recipe(tmp_path / "run", steps=1)))
    assert not any(isinstance(event, Started) for event in seen)


class _Usage:
    free = 1000


def test_a_full_temporary_folder_costs_a_preview_and_not_the_run(
    make_recipe, tmp_path, monkeypatch
):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("konomi.tasks.saving.tempfile.TemporaryDirectory", full)
    recipe = make_recipe(
        tmp_path / "run", steps=2, overrides=["run.preview_every=1", "preview.steps=1"]
    )
    events = list(konomi.train(recipe))
    assert events[-1].step == 2
    assert sum("previews of step" in getattr(event, "message", "") for event in events) == 3


def test_an_interrupt_that_a_library_swallows_is_an_interrupt(capsys, monkeypatch):
    """Imports that are cut off leave half a library, whose next error is not the user's to mend."""

    def inspect(arguments):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            pass
        raise ModelError("the config of text_encoder describes no model that can be built")

    monkeypatch.setattr("konomi.cli.files.inspect", inspect)
    # A test run that was started in the background has been told to ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_second_interrupt_is_immediate(recipe_file, konomi_cli, tmp_path):
    folder = tmp_path / "run"
    process = konomi_cli.start(
        "train", recipe_file(folder, steps=100_000, overrides=["run.checkpoint_every=2"])
    )
    konomi_cli.wait_for_step(folder, 3, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    last = int(checkpoint_paths(folder / "checkpoints")[-1].name[5:])
    assert konomi_cli.run("resume", folder, "--steps", last + 1).returncode == 0


@pytest.mark.slow
def test_sigterm_while_images_are_encoded_ends_and_keeps_what_is_done(
    recipe_file, konomi_cli, tmp_path
):
    folder = tmp_path / "run"
    recipe = recipe_file(folder, steps=3, overrides=[f'data.cache.folder="{tmp_path / "cache"}"'])
    process = konomi_cli.start("train", recipe)
    while not (folder / "recipe.toml").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.strip().splitlines()) == 1
    assert konomi_cli.run("train", recipe).returncode == 0

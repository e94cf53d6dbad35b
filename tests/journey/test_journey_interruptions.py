"""Runs in processes of their own that are stopped, killed, doubled and split."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from konomi.training.checkpoint import checkpoint_paths

ENDLESS = 100_000


def losses(folder: Path):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "kind" not in entry}


def result_weights(folder: Path):
    return checkpoint_paths(folder / "checkpoints")[-1] / "weights.safetensors"


@pytest.mark.slow
def test_kill_minus_nine_then_resume_equals_uninterrupted(
    recipe_file, konomi_cli, tmp_path, same_tensors
):
    whole = tmp_path / "whole"
    assert konomi_cli.run("train", recipe_file(whole, steps=14)).returncode == 0
    folder = tmp_path / "killed"
    process = konomi_cli.start(
        "train", recipe_file(folder, steps=14, overrides=["run.checkpoint_every=2"])
    )
    konomi_cli.wait_for_step(folder, 6, process)
    process.kill()
    process.communicate()
    done = konomi_cli.run("resume", folder)
    assert done.returncode == 0, done.stderr
    assert losses(folder) == losses(whole)
    assert same_tensors(result_weights(folder), result_weights(whole))
    assert same_tensors(folder / "sks.safetensors", whole / "sks.safetensors")
    leftovers = [
        path.name
        for path in folder.rglob("*")
        if path.name.startswith(".partial") or path.name == "run.lock"
    ]
    assert leftovers == []


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_and_ends(recipe_file, konomi_cli, tmp_path, signum):
    folder = tmp_path / "run"
    process = konomi_cli.start("train", recipe_file(folder, steps=ENDLESS))
    konomi_cli.wait_for_step(folder, 3, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"konomi resume {folder}" in out + err
    (checkpoint,) = checkpoint_paths(folder / "checkpoints")
    assert int(checkpoint.name[5:]) == max(losses(folder))
    last = max(losses(folder))
    assert konomi_cli.run("resume", folder, "--steps", last + 2).returncode == 0
    assert sorted(losses(folder)) == list(range(1, last + 3))


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_and_a_dead_ones_lock_is_not(
    recipe_file, konomi_cli, tmp_path
):
    folder = tmp_path / "run"
    recipe = recipe_file(folder, steps=ENDLESS, overrides=["run.checkpoint_every=1"])
    process = konomi_cli.start("train", recipe)
    konomi_cli.wait_for_step(folder, 2, process)
    second = konomi_cli.run("resume", folder)
    assert second.returncode == 1
    assert "another run is using this folder" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    process.kill()
    process.communicate()
    assert konomi_cli.run("resume", folder, "--steps", max(losses(folder)) + 3).returncode == 0


def launch(count, *arguments, port):
    """torchrun, as its users start it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={count}",
        f"--master-port={port}",
    ]
    return subprocess.Popen(
        [*command, "-m", "konomi", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_one_two_processes_are_one_run(recipe_file, konomi_cli, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "split"
    # Without CUDA the default device does; two processes cannot share one card.
    options = {
        "overrides": [
            "run.batch_size=4",
            *(["run.device=cpu"] if torch.cuda.is_available() else []),
        ]
    }
    assert konomi_cli.run("train", recipe_file(whole, steps=9, **options)).returncode == 0

    for count, until in ((2, 3), (1, 6), (2, 9)):
        recipe = recipe_file(folder, steps=3, **options)
        arguments = ("train", recipe) if until == 3 else ("resume", folder, "--steps", until)
        process = launch(count, *arguments, port=free_port())
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
    expected, got = losses(whole), losses(folder)
    assert sorted(got) == list(range(1, 10))
    assert [got[step] for step in sorted(got)] == pytest.approx(
        [expected[step] for step in sorted(expected)], rel=1e-4
    )


@pytest.mark.slow
def test_when_one_of_two_processes_dies_the_other_ends_and_the_state_loads(
    recipe_file, konomi_cli, tmp_path
):
    folder = tmp_path / "run"
    recipe = recipe_file(
        folder, steps=ENDLESS, overrides=["run.device=cpu", "run.checkpoint_every=2"]
    )
    process = launch(2, "train", recipe, port=free_port())
    konomi_cli.wait_for_step(folder, 5, process)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    workers = [int(pid) for pid in children.stdout.split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    started = time.monotonic()
    process.communicate(timeout=90)
    assert time.monotonic() - started < 60
    assert process.returncode != 0
    assert konomi_cli.run("resume", folder, "--steps", max(losses(folder)) + 2).returncode == 0

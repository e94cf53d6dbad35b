"""`konomi compare` as a user meets it: one plan, runs at an equal budget, one table; gone on with
after any interruption, and the same to the bit.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import konomi
from konomi.errors import DataError, RecipeError, RunError
from konomi.evaluation.plan import read_plan
from konomi.evaluation.store import read_summary
from konomi.tasks.candidate_processes import FromRun
from konomi.tasks.comparing import Planned
from konomi.tasks.planning import recipe_path
from konomi.training.events import Started, Step


@pytest.fixture
def compared(quick_comparison, base_folder, pictures, cache):

    def events(*what, settings=quick_comparison, **options):
        given = {
            "images": [pictures], "base": str(base_folder), "trigger": "sks", "class_noun": "dog",
            "budget": "steps=2", "saves": 1, "output": "out",
        } | options  # fmt: skip
        overrides = (f'data.cache.folder="{cache}"', *settings)
        return list(konomi.compare(what, overrides=overrides, **given))

    return events


def steps_of(events):
    found = {}
    for one in events:
        if isinstance(one, FromRun) and isinstance(one.event, Step):
            found.setdefault(one.run, []).append(one.event.step)
    return found


def test_candidates_are_trained_alike_and_measured_beside_the_base(compared, tmp_path, monkeypatch):
    events = compared("lora", "textual_inversion")
    assert steps_of(events) == {"lora": [1, 2], "textual_inversion": [1, 2]}
    summary = read_summary(tmp_path / "out")
    assert [one.id for one in summary.candidates] == [
        "base", "lora-step2@1", "textual_inversion-step2@1",
    ]  # fmt: skip
    assert all("likeness" in one.scores and not one.failure for one in summary.candidates)
    assert Path(events[-1].path).exists()

    found = (tmp_path / "out" / "summary.json").read_bytes()
    assert str(tmp_path).encode() not in found
    # On a full disk it ends with one line, and what was trained and drawn is kept.
    gone = tmp_path / "out" / "pictures" / "lora-step2@1" / "0-0.png"
    gone.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("konomi.storage.atomic.sync_file", full)
        with pytest.raises(RunError) as ended:
            compared("lora", "textual_inversion")
    assert str(ended.value) == (
        f"{gone.relative_to(tmp_path)}: the disk is full. Free some space or choose another output "
        "folder."
    )
    # The same again trains nothing, and finds the same.
    assert steps_of(compared("lora", "textual_inversion")) == {}
    assert (tmp_path / "out" / "summary.json").read_bytes() == found
    assert kept == {path: path.stat().st_mtime_ns for path in kept}

    with pytest.raises(RunError, match='--budget was "steps=2", is "steps=3"'):
        compared("lora", "textual_inversion", budget="steps=3")
    with pytest.raises(RunError, match="holds another comparison"):
        compared("lora")


def test_what_cannot_be_trained_is_a_row_with_its_reason(compared, tmp_path):
    sweep = ("run.device=cpu,cuda:7",)
    events = compared("lora", sweep=sweep)
    (plan,) = [one.plan for one in events if isinstance(one, Planned)]
    assert [bool(run.failure) for run in plan.runs] == [False, True]
    good, bad = read_summary(tmp_path / "out").candidates[1:]
    assert good.scores and not good.failure
    assert not bad.scores and "cuda:7" in bad.failure
    with pytest.raises(RunError, match="cuda:8"):
        compared("lora", sweep=("run.device=cuda:7,cuda:8",), output="none")


def test_the_plan_alone_trains_nothing_and_is_kept(compared, tmp_path, capsys):
    events = compared("lora", "full", budget="minutes=0.01", saves=None, plan_only=True)
    plan = read_plan(tmp_path / "out")
    assert isinstance(events[-1], Planned) and events[-1].plan == plan
    for run in plan.runs:
        assert run.steps == max(1, int(0.6 / run.seconds_per_step))
        assert recipe_path(tmp_path / "out", run.id).exists()
    assert not (tmp_path / "out" / "runs").exists()
    # What was measured then decides the steps also now, however fast the machine is today.
    compared("lora", "full", budget="minutes=0.01", saves=None, plan_only=True)
    assert read_plan(tmp_path / "out").runs == plan.runs


def test_equal_budgets_are_equal_pictures(compared, tmp_path):
    (plan,) = [
        one.plan
        for one in compared(
            "lora", budget="images=12", sweep=("run.batch_size=1,2,5",), saves=2, plan_only=True
        )
        if isinstance(one, Planned)
    ]
    assert [(run.steps, run.batch_size) for run in plan.runs] == [(12, 1), (6, 2), (3, 5)]
    assert [run.save_every for run in plan.runs] == [6, 3, 2]


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"trigger": "", "class_noun": ""}, RecipeError, "no trigger is known"),
        ({"images": ["nowhere"]}, DataError, "nowhere"),
        ({"jobs": 0}, RecipeError, "--jobs is 0"),
        ({"saves": 0}, RecipeError, "--saves is 0"),
        ({"on": "slurm"}, RecipeError, "--on is 'slurm'"),
        ({"search": 3}, RecipeError, "--search N"),
        ({"sweep": ["method.rank=2..8"]}, RecipeError, "needs --search"),
        ({"budget": "hours=2"}, RecipeError, "--budget is 'hours=2'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    compared, quick_comparison, tmp_path, changed, error, told
):
    settings = quick_comparison[:-1] if "trigger" in changed else quick_comparison
    with pytest.raises(error, match=told) as raised:
        compared("lora", settings=settings, **changed)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "runs").exists()


def test_one_picture_and_a_name_of_no_encoder(compared, quick_comparison, pictures, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    (one / "0.png").write_bytes((pictures / "0.png").read_bytes())
    events = compared("lora", images=[one], plan_only=True)
    assert isinstance(events[-1], Planned)
    settings = (*quick_comparison, "evaluation.encoders.image=no/such-encoder")
    with pytest.raises(konomi.KonomiError, match="no/such-encoder"):
        compared("lora", settings=settings, output="other")


@pytest.mark.slow
def test_a_search_tries_settings_and_every_run_is_a_row(compared, tmp_path):
    pytest.importorskip("optuna", reason="the extra `search` is not installed")
    options = {"sweep": ["method.rank=1,2,3"], "search": 2, "budget": "steps=2", "saves": 2}
    events = compared("lora", **options)
    trained = {one.run for one in events if isinstance(one, FromRun)}
    assert len(trained) == 2 and all(name.startswith("lora-rank-") for name in trained)
    summary = read_summary(tmp_path / "out")
    assert {Path(one.run).name for one in summary.candidates if one.run} == trained
    assert steps_of(compared("lora", **options)) == {}


@pytest.fixture
def command(quick_comparison, base_folder, pictures, cache):
    return [
        sys.executable, "-m", "konomi", "compare", "lora", "textual_inversion",
        "--images", str(pictures), "--base", str(base_folder), "--trigger", "sks",
        "--class", "dog", "--budget", "steps=4", "--saves", "2", "--jobs", "2", "--output", "out",
        f'data.cache.folder="{cache}"', *quick_comparison,
    ]  # fmt: skip


def finished(command, folder):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_while_it_trains_and_while_it_draws_it_finds_the_same(command, tmp_path):
    shown = finished(command, tmp_path / "whole")
    assert "4 runs" not in shown and "2 runs on" in shown and "±" in shown
    folder = tmp_path / "killed"
    folder.mkdir()
    for sign in ("runs/lora/checkpoints/step-000002", "pictures/lora-step2@1/0-0.png"):
        started = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        while not (folder / "out" / sign).exists():
            assert started.poll() is None, f"it ended before {sign} was there"
            time.sleep(0.01)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    finished(command, folder)
    for name in ("summary.json", "scores.jsonl"):
        there, here = (tmp_path / where / "out" / name for where in ("killed", "whole"))
        assert there.read_bytes() == here.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_ray_a_killed_worker_goes_on_and_finds_the_same(compared, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    what = ("lora", "textual_inversion", "hypernetwork", "dreamartist")
    options = {"budget": "steps=12", "saves": 2, "jobs": 2}
    compared(*what, **options, output="here/out")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        killer = threading.Thread(
            target=kill_one, args=(tmp_path / "there" / "out" / "runs" / "lora", killed := [])
        )
        killer.start()
        events = compared(*what, **options, on="ray", output="there/out")
        killer.join()
    finally:
        ray.shutdown()
    assert killed
    begun = [
        one.event.first_step
        for one in events
        if isinstance(one, FromRun) and one.run == "lora" and isinstance(one.event, Started)
    ]
    assert begun[-1] > 0
    here, there = (
        (tmp_path / where / "out" / "scores.jsonl").read_bytes() for where in ("here", "there")
    )
    assert here == there


def kill_one(run, killed):
    """End the process that trains in a folder, once it has saved a state."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (run / "checkpoints" / "step-000003").exists():
            killed.append(json.loads((run / "run.lock").read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.005)

"""Processes that train candidates: how many at a time, and every way in which one may end. The
processes here speak a worker's language and train nothing.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from konomi.evaluation.plan import PlannedRun
from konomi.storage.process import is_alive
from konomi.tasks import candidate_processes
from konomi.tasks.candidate_processes import Trained, event_of, train_in_processes
from konomi.tasks.candidate_worker import told
from konomi.tasks.planning import recipe_path
from konomi.training.events import Finished, Saved, Started, Step, Warned
from konomi.training.stop import Stop

PREAMBLE = """
import json, os, pathlib, sys, time
def tell(event, **values): print(json.dumps({"event": event, **values}), flush=True)
def finish(step=3):
    tell("Finished", step=step, path="x", interrupted=False, pictures=[], next_commands=[])
exec(pathlib.Path(sys.argv[1]).read_text())
"""  # fmt: skip


def run_all(monkeypatch, folder, scripts, *, jobs=2, stop=None):
    """Everything that processes with these scripts tell."""
    monkeypatch.setattr(candidate_processes, "COMMAND", (sys.executable, "-S", "-c", PREAMBLE))
    for name, script in scripts.items():
        path = recipe_path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
    runs = [PlannedRun(id=name, label=name, method="lora", changes={}) for name in scripts]
    return train_in_processes(runs, folder, jobs=jobs, threads=3, stop=stop or Stop())


def test_events_come_through_as_they_were():
    for event in (
        Started(0, 9, 3, 100, "cpu", "float32"),
        Step(1, 0, 0.5, 1e-4, 0.25, 1, 300.0, {"prior": 0.125}),
        Saved(3, "a.safetensors", ("all of it",)),
        Finished(9, "b", False, ("p.png",), ("konomi generate",)),
    ):
        line = json.loads(told(event))
        assert event_of(line.pop("event"), line) == event
    assert event_of("Unheard", {}) is None


def test_one_that_fails_leaves_the_others_alone(monkeypatch, tmp_path):
    scripts = {
        "good": 'tell("Warned", message="threads " + os.environ["OMP_NUM_THREADS"]); finish()',
        "told": 'tell("Failed", reason="no class noun."); sys.exit(1)',
        "raised": 'raise ValueError("odd")',
        "killed": "os.kill(os.getpid(), 9)",
        "silent": "",
    }
    news = list(run_all(monkeypatch, tmp_path, scripts))
    ended = {one.run: one.event for one in news if isinstance(one.event, Trained)}
    assert [one.event for one in news if one.run == "good"][:-1] == [Warned("threads 3")]
    assert ended["good"] == Trained(3, "x")
    assert ended["told"] == Trained(failure="no class noun.")
    assert "ValueError: odd" in ended["raised"].failure
    assert "Traceback" in (tmp_path / "runs" / "raised" / "errors.txt").read_text()
    assert not (tmp_path / "runs" / "good" / "errors.txt").exists()
    assert "SIGKILL" in ended["killed"].failure
    assert "exit code 0" in ended["silent"].failure


def test_never_more_at_a_time_than_asked_for(monkeypatch, tmp_path):
    script = 'tell("Warned", message="begin"); time.sleep(0.05); finish()'
    most = running = 0
    for one in run_all(monkeypatch, tmp_path, dict.fromkeys("abcde", script)):
        running += 1 if isinstance(one.event, Warned) else -1
        most = max(most, running)
    assert (most, running) == (2, 0)


def test_a_request_to_stop_is_passed_on_and_starts_no_more(monkeypatch, tmp_path):
    stop = Stop()
    script = (
        'tell("Warned", message="begin")\nassert sys.stdin.readline() == "stop\\n"\n'
        'tell("Finished", step=2, path="", interrupted=True, pictures=[], next_commands=[])'
    )
    seen = []
    for one in run_all(monkeypatch, tmp_path, dict.fromkeys("abc", script), stop=stop):
        seen.append((one.run, one.event))
        if len(seen) == 2:
            stop.request()
    assert {name for name, _ in seen} == {"a", "b"}
    assert [event for _, event in seen[2:]] == [Trained(2, "")] * 2


def test_whoever_closes_the_events_ends_the_processes(monkeypatch, tmp_path):
    script = 'tell("Warned", message=str(os.getpid())); time.sleep(600)'
    events = run_all(monkeypatch, tmp_path, {"a": script})
    process = int(next(events).event.message)
    assert is_alive(process)
    events.close()
    assert not is_alive(process)


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_a_worker_does_not_outlive_who_started_it(tmp_path):
    # The worker's own listener, in a process whose parent is killed.
    worker = (
        "import sys, threading, time; from konomi.training.stop import Stop, stop_on_input; "
        "threading.Thread(target=stop_on_input, args=(sys.stdin, Stop()), daemon=True).start(); "
        "print('up', flush=True); time.sleep(600)"
    )
    parent = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {worker!r}], "
        "stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", parent], stdout=subprocess.PIPE, text=True
    ) as started:
        child = int(started.stdout.readline())
        assert started.stdout.readline() == "up\n"
        assert is_alive(child)
        os.kill(started.pid, signal.SIGKILL)
    for _ in range(200):
        if not is_alive(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the worker went on without anybody to tell")

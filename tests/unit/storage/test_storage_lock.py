import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from konomi.errors import RunError
from konomi.storage import lock as lock_module
from konomi.storage import process
from konomi.storage.lock import RunLock

HOLD = (
    "import sys, time\nfrom konomi.storage.lock import RunLock\n"
    "lock = RunLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)\n"
)


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def with_and_without_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(lock_module, "_flock", lambda descriptor: None)
    return bool(request.param)


def test_the_second_run_is_told_who_holds_the_folder(
    tmp_path: Path, with_and_without_flock: bool
) -> None:
    with RunLock(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()} on "):
        RunLock(tmp_path).acquire()
    assert not (tmp_path / "run.lock").exists()
    with RunLock(tmp_path):
        pass


def test_another_process_holds_until_it_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {child.pid} "):
            RunLock(tmp_path).acquire()
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
        assert (tmp_path / "run.lock").exists()
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize(
    "change", [{"pid": 2**22 + 1}, {"started": "1"}], ids=["dead", "number reused"]
)
def test_a_stale_lock_is_recovered(
    tmp_path: Path, with_and_without_flock: bool, change: dict[str, object]
) -> None:
    with RunLock(tmp_path):
        stale = json.loads((tmp_path / "run.lock").read_text())
    (tmp_path / "run.lock").write_text(json.dumps(stale | change))
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_an_orphan_still_holds_is_recovered(tmp_path: Path) -> None:
    program = HOLD.replace(
        "time.sleep(60)", "import os\nif os.fork() == 0: time.sleep(60)\nelse: os._exit(0)"
    )
    program = program.replace("print('held', flush=True); ", "")
    program = program.replace("import os\n", "import os, sys\nprint(os.getpid(), flush=True)\n")
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        child.wait(timeout=20)
        with RunLock(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()} "):
            RunLock(tmp_path).acquire()
    finally:
        os.killpg(child.pid, signal.SIGKILL)


def test_a_lock_of_another_host_is_respected_without_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_flock", lambda descriptor: None)
    holder = {"pid": 1, "host": "elsewhere", "started": "1", "since": "2026-01-01 00:00:00"}
    (tmp_path / "run.lock").write_text(json.dumps(holder))
    with pytest.raises(RunError, match=r"process 1 on elsewhere.*delete .*run\.lock"):
        RunLock(tmp_path).acquire()


def test_damaged_lock_files_do_not_block(tmp_path: Path, with_and_without_flock: bool) -> None:
    (tmp_path / "run.lock").write_bytes(b"\xff{")
    with RunLock(tmp_path):
        pass


def test_process_identity() -> None:
    started = process.start_time(os.getpid())
    assert process.is_alive(os.getpid(), started)
    assert not process.is_alive(os.getpid(), started + "1") or not started
    assert not process.is_alive(0) and not process.is_alive(2**22 + 1)


def test_a_disk_that_refuses_to_remove_the_lock_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with RunLock(tmp_path):
            pass
    with RunLock(tmp_path):
        pass
    assert not (tmp_path / "run.lock").exists()

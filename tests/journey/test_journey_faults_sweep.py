"""kill -9, a full disk and a failing one before file-system events of a whole run, to the last
file.

A sample of what `bench/faults.py` tries event by event.
"""

import importlib.util
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "faults.py"


@pytest.mark.slow
def test_nothing_is_lost_wherever_a_run_is_struck(tmp_path):
    spec = importlib.util.spec_from_file_location("faults", BENCH)
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    tried = list(faults.sweep(faults.short_run(tmp_path), tmp_path, list(faults.KINDS), every=29))
    assert len(tried) >= 40 and {trial.kind for trial, _ in tried} == {"kill", "full", "EIO"}
    # A fault that nothing came of would show nothing: most runs must have ended at it, with a line
    # about the disk.
    ended = [trial.said for trial, _ in tried if trial.status == faults.REFUSED]
    assert len(ended) >= 10 and all("disk" in line for line in ended)
    assert [(str(trial), wrong) for trial, wrong in tried if wrong] == []

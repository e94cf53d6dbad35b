"""kill -9, a full disk and a failing one before file-system events of a whole run, to the last file.

A sample of what `bench/faults.py` tries event by event.
"""

import importlib.util
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "faults.py"


@pytest.mark.slow
def test_nothing_is_lost_wherever_a_run_is_struck(tmp_path):
    import konomi

    spec = importlib.util.spec_from_file_location("faults", BENCH)
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    recipe = faults.short_run(tmp_path)
    list(konomi.train(recipe))
    tried = list(faults.sweep(recipe, tmp_path, ["kill", "ENOSPC", "EIO"], every=113))
    assert len(tried) >= 12
    assert [(kind, at, wrong) for kind, at, wrong in tried if wrong] == []

"""A copy of the package, to add things to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "konomi"


@pytest.fixture
def copied(tmp_path):
    """A copy of the package that can be changed, and a way to run its command line."""
    package = tmp_path / "src" / "konomi"
    shutil.copytree(SOURCE, package)
    environment = os.environ | {
        "PYTHONPATH": str(package.parent),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }

    def run(*arguments, module="konomi", path=""):
        command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        path = os.pathsep.join([environment["PYTHONPATH"], *([str(path)] if path else [])])
        surroundings = environment | {"PYTHONPATH": path}
        return subprocess.run(
            command, capture_output=True, text=True, env=surroundings, cwd=tmp_path, timeout=240
        )

    return package, run


@pytest.fixture
def add_line():
    """Write a new text in place of an old one, which must be there."""

    def add(path: Path, old: str, new: str) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return add

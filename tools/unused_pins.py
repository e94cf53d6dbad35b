"""Pins in constraints.txt that no installation of konomi needs, and packages that have no pin.

    python tools/unused_pins.py

Asks pip what it would install of konomi with all extras into an empty environment; needs a package
index.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def normal(name: str) -> str:
    """As package indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> set[str]:
    """Every package that some extra brings along."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
        ]
        command += ["--report", str(report), "-c", "constraints.txt", f".[{','.join(extras)}]"]
        subprocess.run(command, cwd=ROOT, check=True)
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normal(item["metadata"]["name"]) for item in installed} - {"konomi"}


def main() -> int:
    """Print both lists. Returns 1 if one of them is not empty."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    needed = wanted()
    print("unused:", ", ".join(sorted(pinned - needed)) or "none")
    print("without a pin:", ", ".join(sorted(needed - pinned)) or "none")
    return int(pinned != needed)


if __name__ == "__main__":
    sys.exit(main())

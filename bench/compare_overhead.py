"""What `konomi compare` costs beyond its training and drawing.

    python -m bench.compare_overhead [--steps 300] [--jobs 2] [METHOD ...]

Training is what the runs take as commands by themselves, one after another; drawing is the time in
which the comparison draws. Both on the same cores. The bar is 1.15.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import konomi
from konomi.methods import METHODS
from konomi.tasks.comparing import Planned
from konomi.training.events import Prepared

MASCOT = Path(konomi.__file__).parent / "builtin" / "mascot"


def main() -> int:
    """Print each part and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = [method.config_type().kind for method in METHODS]
    parser.add_argument("methods", nargs="*", default=kinds)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--saves", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-overhead-") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        whole, drawing, plan = compared(folder / "compared", options)
        # Class images of the first time are part of its training as well.
        shutil.rmtree(folder / "cache", ignore_errors=True)
        training = 0.0
        for run in plan.trainable:
            seconds = trained(folder / "compared" / "recipes" / f"{run.id}.toml", folder / run.id)
            print(f"{run.id:<20} {seconds:7.1f} s", flush=True)
            training += seconds
    print(f"training {training:.1f} s, drawing {drawing:.1f} s, comparison {whole:.1f} s")
    print(f"ratio {whole / (training + drawing):.2f} (bar 1.15)")
    return 0


def compared(output: Path, options: argparse.Namespace):
    """Seconds of all, seconds of drawing, and the plan."""
    begun, drew, plan = time.monotonic(), [0.0, 0.0], None
    for event in konomi.compare(
        options.methods,
        images=[MASCOT],
        base="tiny",
        trigger="sks",
        class_noun="creature",
        budget=f"steps={options.steps}",
        saves=options.saves,
        jobs=options.jobs,
        output=output,
    ):
        if isinstance(event, Planned):
            plan = event.plan
        if isinstance(event, Prepared) and event.what == "pictures":
            drew[0] = drew[0] or time.monotonic()
            drew[1] = time.monotonic()
    return time.monotonic() - begun, drew[1] - drew[0], plan


def trained(recipe: Path, output: Path) -> float:
    """Seconds of `konomi train`."""
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "konomi", "train", str(recipe), f"run.output={output}"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"KONOMI_REPORT": "off"},
    )
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())

"""Ends `konomi compare` by SIGKILL at random moments, and asks again until it is done: is what it
finds the same to the bit as without?

    python -m bench.compare_kill [--kills 10] [--seed 0]

Each moment is drawn anew from the time that the whole takes, so that planning, starting, training,
drawing and measuring are all met.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MASCOT = Path(__file__).parents[1] / "src" / "konomi" / "builtin" / "mascot"
SETTINGS = (
    "run.checkpoint_every=1",
    "run.batch_size=1",
    "evaluation.steps=1",
    "evaluation.seeds=2",
    'evaluation.prompts=["a {}", "a {} on a red background", "a creature", "a fox"]',
)
COMPARED = ("summary.json", "scores.jsonl")


def command(output: Path, jobs: int) -> list[str]:
    """A comparison that is small and has everything."""
    return [
        sys.executable, "-m", "konomi", "compare", "lora", "textual_inversion",
        "--images", str(MASCOT), "--base", "tiny", "--trigger", "sks", "--class", "creature",
        "--budget", "steps=8", "--saves", "2", "--jobs", str(jobs), "--output", str(output),
        *SETTINGS,
    ]  # fmt: skip


def run(folder: Path, jobs: int, seconds: float | None = None) -> bool:
    """Whether it came to its end before it was killed. Both comparisons have the same name below
    their own current folder, as paths in what is found are relative to that."""
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        started = subprocess.Popen(command(Path("out"), jobs), cwd=folder, stdout=log, stderr=log)
        try:
            code = started.wait(seconds)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
            return False
    if code:
        raise SystemExit((folder / "log.txt").read_text())
    return True


def main() -> int:
    """Print each moment, and whether the end is the same. 1 where it is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory(prefix="compare-kill-") as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        begun = time.monotonic()
        run(whole, options.jobs)
        seconds = time.monotonic() - begun
        print(f"uninterrupted: {seconds:.1f} s", flush=True)
        count = 0
        while count < options.kills:
            after = draw.uniform(0.05, 0.9) * seconds
            ended = run(killed, options.jobs, after)
            count += 1
            what = "it was done" if ended else "killed"
            print(f"{count}: {what} after {after:.1f} s", flush=True)
        run(killed, options.jobs)
        same = [
            (whole / "out" / file).read_bytes() == (killed / "out" / file).read_bytes()
            for file in COMPARED
        ]
        for file, equal in zip(COMPARED, same, strict=True):
            print(f"{file}: {'the same to the bit' if equal else 'DIFFERENT'}")
        if not all(same):
            subprocess.run(["diff", *(str(f / "out" / COMPARED[0]) for f in (whole, killed))])
    return int(not all(same))


if __name__ == "__main__":
    sys.exit(main())

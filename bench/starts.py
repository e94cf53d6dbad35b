"""Starts that do not grow: seconds of `check` and of `train` up to its first step, by the number
of images.

    python bench/starts.py [COUNT ...]

Makes folders of small pictures (hard links to 500 different ones), every second with a caption,
and does each command in a process of its own: first with an empty cache, then twice with a full
one, of which the faster counts. Seconds are of processor time from process start, which a busy
neighbour does not change much.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = (10, 10_000, 100_000)
DIFFERENT = 500


def make_images(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    kept = folder / "kept"
    kept.mkdir()
    for number in range(min(count, DIFFERENT)):
        pixels = draws.integers(0, 8, (64, 64, 3), np.uint8) * 32
        Image.fromarray(pixels).save(kept / f"{number}.png")
    for number in range(count):
        inside = folder / "images" / f"part {number // 1000:03}"
        if number % 1000 == 0:
            inside.mkdir(parents=True)
        os.link(kept / f"{number % DIFFERENT}.png", inside / f"image {number:06}.png")
        if number % 2:
            caption = (
                f"a photo of thing {number % DIFFERENT}, red hat, blue sky, standing on "
                "grass, best quality"
            )
            (inside / f"image {number:06}.txt").write_text(caption, encoding="utf-8")


def start_once(folder: Path, what: str) -> None:
    """Do it, and print seconds and peak memory in MB."""
    from konomi.tasks.checking import check
    from konomi.tasks.recipes import recipe_from_flags
    from konomi.tasks.training import train
    from konomi.training.events import Started

    recipe = recipe_from_flags(
        "lora",
        images=[folder / "images"],
        base="tiny",
        trigger="sks",
        class_noun="thing",
        output=str(folder / "run"),
        steps=1,
        seed=0,
        prior_images=None,
        overrides=[
            "data.resolution=64",
            f"data.cache.folder={folder / 'cache'}",
            "run.preview_every=0",
        ],
    )
    if what == "check":
        check(recipe)
    else:
        for event in train(recipe, overwrite=True):
            if isinstance(event, Started):
                break
    print(f"{time.process_time():.3f}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    sys.stdout.flush()
    os._exit(0)


def measured(count: int) -> list[str]:
    cells = [f"{count:,}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, count)
        for what in ("check", "train"):
            found = []
            for _ in range(3):
                command = [sys.executable, __file__, "--start", name, what]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(tuple(map(float, done.stdout.split()[-2:])))
            warm = min(found[1:])
            cells += [f"{found[0][0]:.2f}", f"{warm[0]:.2f}", f"{warm[1]:.0f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("counts", nargs="*", type=int, default=COUNTS)
    parser.add_argument("--start", nargs=2, metavar=("FOLDER", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        start_once(Path(arguments.start[0]), arguments.start[1])
        return
    print("| images | check, cold | warm | MB | train to its first step, cold | warm | MB |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.counts:
        print(f"| {' | '.join(measured(count))} |", flush=True)


if __name__ == "__main__":
    main()

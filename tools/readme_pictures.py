"""Make the README's pictures from a demo run: python tools/readme_pictures.py KONOMI_DEMO_FOLDER"""

import sys
from pathlib import Path

from PIL import Image

from konomi.evaluation.store import read_summary
from konomi.generation.grid import make_grid
from konomi.tasks.demonstration import MASCOT

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main(demo: Path) -> None:
    """The base beside the suggested candidate, and the pictures learned from."""
    summary = read_summary(demo)
    base, kept = (
        next(one for one in summary.candidates if one.id == id)
        for id in ("base", summary.suggestion.id)
    )
    numbers = [
        next(n for n, one in enumerate(summary.prompts) if one.kind == kind)
        for kind in ("subject", "context", "class", "unrelated")
    ]
    seeds = range(len(summary.seeds))
    pictures = [
        Image.open(demo / candidate.pictures[f"{number}-{seed}"])
        for number in numbers
        for candidate in (base, kept)
        for seed in seeds
    ]
    make_grid(
        pictures,
        columns=2 * len(seeds),
        column_labels=[f"{name} {seed + 1}" for name in ("base", "trained") for seed in seeds],
        row_labels=[summary.prompts[number].text for number in numbers],
    ).save(IMAGES / "demo.png", optimize=True)
    samples = [
        Image.open(path).convert("RGB").resize((128, 128)) for path in sorted(MASCOT.glob("*.png"))
    ]
    make_grid(samples, columns=len(samples)).save(IMAGES / "mascot.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

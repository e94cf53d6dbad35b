"""Make the README's pictures from a demo run: python tools/readme_pictures.py KONOMI_DEMO_FOLDER"""

import sys
from pathlib import Path

from PIL import Image

from konomi.adapters.apply import Strengths, attach
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import count_on, generate
from konomi.generation.grid import make_grid
from konomi.generation.request import Request
from konomi.tasks import load_base
from konomi.tasks.demonstration import GUIDANCE, MASCOT, PANEL, SEED

IMAGES = Path(__file__).parents[1] / "docs" / "images"
EACH = 3


def main(demo: Path) -> None:
    """Before and after, and the pictures learned from."""
    base = load_base("tiny", device="cpu")
    adapter = read_adapter(demo / "mascot.safetensors")
    prompts = [prompt for prompt, _ in PANEL]
    columns = []
    for strength in (0.0, 1.0):
        with attach(base, [(adapter, Strengths(strength, strength))]):
            columns.append(
                [
                    [p.image for p in generate(base, count_on(request, EACH), batch=EACH)]
                    for request in (
                        Request(prompt=p, seed=SEED, steps=25, guidance=GUIDANCE) for p in prompts
                    )
                ]
            )
    pictures = [image for row in range(len(prompts)) for column in columns for image in column[row]]
    labels = [f"{name} {index + 1}" for name in ("base", "trained") for index in range(EACH)]
    make_grid(pictures, columns=2 * EACH, column_labels=labels, row_labels=prompts).save(
        IMAGES / "demo.png", optimize=True
    )
    samples = [
        Image.open(path).convert("RGB").resize((128, 128)) for path in sorted(MASCOT.glob("*.png"))
    ]
    make_grid(samples, columns=len(samples)).save(IMAGES / "mascot.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Draw the pictures of docs/merging.md: python tools/merging_pictures.py [--work FOLDER]

A is `tiny`, B is `tiny` after a full fine-tune on the built-in mascot; every picture of a row has
the same seed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.grid import make_grid
from konomi.generation.request import Request
from konomi.models.base import BaseModel
from konomi.tasks import load_base

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MASCOT = ROOT / "src" / "konomi" / "builtin" / "mascot"
PROMPTS = ("sks creature, red background", "a fox")
COLOURS = 128
"""Of the saved PNG's palette."""

Column = tuple[str, list[Image.Image]]


def tuned(work: Path) -> Path:
    """B, trained where it is not there yet."""
    run = work / "full"
    if not (run / "checkpoints").exists():
        recipe = konomi.recipe_from_flags(
            "full",
            images=[MASCOT],
            base="tiny",
            trigger="sks creature",
            output=str(run),
            steps=200,
            overrides=["optimizer.learning_rate=1e-4"],
        )
        *_, finished = konomi.train(recipe)
        return Path(finished.path)
    return next(path for path in run.glob("*.safetensors") if "step" not in path.name)


def drawn(base: BaseModel) -> list[Image.Image]:
    """Each prompt."""
    return [
        picture.image
        for picture in generate(base, [Request(prompt=p, seed=3, steps=25) for p in PROMPTS])
    ]


def merged(b: Path, work: Path, label: str, **settings: object) -> Column:
    """A and B, merged."""
    output = work / f"{label.replace('/', '-')}.safetensors"
    output.unlink(missing_ok=True)
    konomi.merge_models(["tiny", b], output, **settings)
    return label, drawn(load_base(output, device="cpu"))


def alphas(b: Path, work: Path) -> list[Column]:
    """The weighted sum."""
    return [merged(b, work, f"alpha {x:g}", alpha=x) for x in (0, 0.25, 0.5, 0.75, 1)]


def blocks(b: Path, work: Path) -> list[Column]:
    """B in some blocks alone."""
    chosen = {
        "A": {"blocks": "ALL_A", "base_alpha": 0.0},
        "BASE": {"blocks": "ALL_A", "base_alpha": 1.0},
        "IN": {"blocks": _some("IN"), "base_alpha": 0.0},
        "M00": {"blocks": _some("M"), "base_alpha": 0.0},
        "OUT": {"blocks": _some("OUT"), "base_alpha": 0.0},
        "GRAD_V": {"blocks": "GRAD_V", "base_alpha": 0.5},
        "B": {"blocks": "ALL_B", "base_alpha": 1.0},
    }
    return [merged(b, work, label, **settings) for label, settings in chosen.items()]


def _some(kind: str) -> str:
    names = [f"IN{n:02d}" for n in range(12)] + ["M00"] + [f"OUT{n:02d}" for n in range(12)]
    return ",".join(f"{name}:{int(name.startswith(kind))}" for name in names)


def extracted(b: Path, work: Path, rank: int) -> Path:
    """B's difference from A."""
    output = work / f"rank-{rank}.safetensors"
    output.unlink(missing_ok=True)
    konomi.extract(b, "tiny", output, rank=rank)
    return output


def ranks(b: Path, work: Path) -> list[Column]:
    """LoRAs of different ranks, extracted from B."""
    columns = []
    for rank in (1, 4, 16, 64):
        columns += weights(extracted(b, work, rank), [1.0], f"rank {rank}")
    return [*columns, ("B", drawn(load_base(b, device="cpu")))]


def weights(lora: Path, strengths: Sequence[float], label: str = "") -> list[Column]:
    """One LoRA at several weights."""
    base, adapter, columns = load_base("tiny", device="cpu"), read_adapter(lora), []
    for x in strengths:
        with attach(base, [(adapter, Strengths(x, x))]):
            columns.append((label or f"weight {x:g}", drawn(base)))
    return columns


def save(name: str, columns: Sequence[Column]) -> None:
    """One picture, a row for each prompt."""
    cells = [pictures[row] for row in range(len(PROMPTS)) for _, pictures in columns]
    labels = [label for label, _ in columns]
    picture = make_grid(cells, columns=len(columns), column_labels=labels, row_labels=list(PROMPTS))
    path = IMAGES / f"merging-{name}.png"
    picture.quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Draw all four."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where the files are kept; else thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        b = tuned(work)
        save("alphas", alphas(b, work))
        save("blocks", blocks(b, work))
        save("ranks", ranks(b, work))
        save("weights", weights(extracted(b, work, 16), (0.0, 0.5, 1.0, 1.5, 2.0)))


if __name__ == "__main__":
    main()

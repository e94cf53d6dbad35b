"""Draw the pictures of docs/methods: python tools/method_pictures.py KIND [--work FOLDER]

Each trains on the built-in mascot with `tiny` and draws the same seeds before and after.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.config.aesthetic import AestheticConfig
from konomi.formats.adapter_file import read_adapter
from konomi.generation.aesthetic import AestheticGradients
from konomi.generation.generate import generate
from konomi.generation.grid import make_grid
from konomi.generation.infotext import save_png
from konomi.generation.request import Request
from konomi.models.base import BaseModel
from konomi.tasks import load_base
from konomi.tasks.aesthetic_wish import read_wish

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MASCOT = ROOT / "src" / "konomi" / "builtin" / "mascot"
SEEDS = range(1, 5)
COLOURS = 128
"""Of the saved PNG's palette: a grid stays below 150 KB."""


def aesthetic(work: Path) -> Image.Image:
    """Other prompts, tuned towards eight pictures on red that the base itself drew."""
    base = load_base("tiny", device="cpu")
    nouns = ("cat", "heart", "star", "apple", "pizza", "sun", "fox", "mushroom")
    liked = [
        Request(prompt=f"a {noun}, on a red background", seed=100 + i, steps=25)
        for i, noun in enumerate(nouns)
    ]
    for picture in generate(base, liked):
        save_png(picture, work / "liked")
    file = konomi.train_aesthetic([str(work / "liked")], base="tiny", output=work / "run")
    prompts = ["a dog", "a cake", "a rabbit"]
    drawn = [drawn_by(base, prompts)]
    for weight in (0.5, 1.0):
        wish = read_wish(AestheticConfig(files=(f"{file}:{weight}",)))
        drawn.append(drawn_by(base, prompts, wish.on(base)))
    return grid(drawn, prompts, ("base", "0.5", "1"))


def custom_diffusion(work: Path) -> Image.Image:
    """The subject, its size by words, and a neighbour that should stay what it was."""
    result = train("custom_diffusion", work, ["optimizer.learning_rate=2e-4"])
    prompts = [
        "sks creature, red background",
        "very small sks creature",
        "close up sks creature",
        "a fox",
    ]
    return before_and_after(result, prompts)


def dreamartist(work: Path) -> Image.Image:
    """The subject of a single picture, and words beside it."""
    one = work / "one"
    one.mkdir(parents=True, exist_ok=True)
    shutil.copy(MASCOT / "mascot-1.png", one)
    result = train("dreamartist", work, [], images=one)
    return before_and_after(
        result, ["a photo of sks creature", "sks creature on the beach", "a red sks creature"]
    )


def dreambooth(work: Path) -> Image.Image:
    """The subject in the words it was shown with and in others, its class, which should stay, and
    a neighbour.
    """
    result = train("dreambooth", work, [])
    prompts = [
        "sks creature, standing, light blue background",
        "sks creature, red background",
        "a creature",
        "a fox",
    ]
    return grid(
        [drawn_by(load_base(str(base), device="cpu"), prompts) for base in ("tiny", result)],
        prompts,
    )


def hypernetwork(work: Path) -> Image.Image:
    """The subject, and a neighbour that should stay what it was."""
    return before_and_after(
        train("hypernetwork", work, []), ["sks creature, red background", "a fox"]
    )


def textual_inversion(work: Path) -> Image.Image:
    """The word alone, and among words that the base knows."""
    return before_and_after(train("textual_inversion", work, []), WORD_PROMPTS)


def imagic(work: Path) -> Image.Image:
    """One picture of the mascot on its way to a red background."""
    recipe = konomi.recipe_from_flags(
        "imagic",
        images=[MASCOT / "mascot-1.png"],
        base="tiny",
        output=str(work / "imagic"),
        overrides=["method.prompt=a creature, red background"],
    )
    *_, finished = konomi.train(recipe, overwrite=True)
    return Image.open(next(path for path in finished.pictures if path.endswith(".etas.png")))


def pivotal(work: Path) -> Image.Image:
    """The same prompts, with word and LoRA."""
    return before_and_after(train("pivotal", work, []), WORD_PROMPTS)


WORD_PROMPTS = ("a photo of sks", "sks, red background", "a fox")

PICTURES: dict[str, Callable[[Path], Image.Image]] = {
    "aesthetic": aesthetic,
    "dreamartist": dreamartist,
    "dreambooth": dreambooth,
    "custom_diffusion": custom_diffusion,
    "hypernetwork": hypernetwork,
    "imagic": imagic,
    "textual_inversion": textual_inversion,
    "pivotal": pivotal,
}


def train(kind: str, work: Path, overrides: Sequence[str], *, images: Path = MASCOT) -> Path:
    """The result of one method on the mascot, or on other pictures."""
    recipe = konomi.recipe_from_flags(
        kind,
        images=[images],
        base="tiny",
        trigger="sks",
        class_noun="creature",
        output=str(work / kind),
        overrides=overrides,
    )
    *_, finished = konomi.train(recipe, overwrite=True)
    return Path(finished.path)


def before_and_after(result: Path, prompts: Sequence[str]) -> Image.Image:
    """A row for each prompt: the base's pictures, then those with the result, of the same seeds."""
    base = load_base("tiny", device="cpu")
    adapter = read_adapter(result)
    drawn = []
    for strength in (0.0, 1.0):
        with attach(base, [(adapter, Strengths(strength, strength))]):
            drawn.append(drawn_by(base, prompts))
    return grid(drawn, prompts)


def drawn_by(
    base: BaseModel, prompts: Sequence[str], tuned: AestheticGradients | None = None
) -> list[Image.Image]:
    """Each prompt with each seed."""
    requests = [Request(prompt=p, seed=s, steps=25, guidance=7.0) for p in prompts for s in SEEDS]
    return [picture.image for picture in generate(base, requests, aesthetic=tuned)]


def grid(
    drawn: Sequence[Sequence[Image.Image]],
    prompts: Sequence[str],
    names: Sequence[str] = ("base", "trained"),
) -> Image.Image:
    """A row for each prompt: the pictures of the base, then those of the trained."""
    count = len(SEEDS)
    rows = [half[row * count : (row + 1) * count] for row in range(len(prompts)) for half in drawn]
    labels = [f"{name} {seed}" for name in names for seed in SEEDS]
    pictures = [image for row in rows for image in row]
    return make_grid(
        pictures, columns=len(drawn) * count, column_labels=labels, row_labels=list(prompts)
    )


def main() -> None:
    """Draw one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=PICTURES)
    parser.add_argument(
        "--work", type=Path, help="where the run is kept; by default it is thrown away"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        picture = PICTURES[options.kind](options.work or Path(temporary))
    path = IMAGES / f"methods-{options.kind}.png"
    picture.quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

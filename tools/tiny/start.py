"""The network of starts inside konomi: pictures of concepts that `tiny` has words for, and what it
learned from them.

    python -m tools.tiny.start --data ../shared/data --work SUBJECTS

Each drawing of a concept whose name is one token is a subject: four scenes of it, in a folder
called by the name and the style. The novel concepts are not among them, and nothing of OpenMoji.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tools.tiny.scenes import STYLES, Sprites, describe, load_sprites, render

import konomi
import konomi.training.events
from konomi.models.load import BUILTIN, load_base

PICTURES = 4
FIRST_SEED = 910_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny.start", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the emoji")
    parser.add_argument("--work", type=Path, required=True, help="folder for the subjects")
    parser.add_argument("--network", default="features")
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--output", type=Path, default=BUILTIN / "start" / "tiny.safetensors")
    options = parser.parse_args()
    if not options.work.is_dir():
        write_subjects(load_sprites(options.data), options.work)
    for event in konomi.learn_start(
        "tiny",
        subjects=options.work,
        pictures=PICTURES,
        network=options.network,
        epochs=options.epochs,
        rate=options.rate,
        output=options.output,
        overwrite=True,
        device="cpu",
    ):
        if not isinstance(event, konomi.training.events.Prepared):
            print(event, flush=True)


def write_subjects(sprites: Sprites, folder: Path) -> None:
    """`FOLDER/NAME.STYLE/N.png`."""
    base = load_base("tiny")
    for style in STYLES:
        for index in sprites.by_style[style]:
            name = sprites.all[index].name
            if any(len(pieces) != 1 for pieces in base.tokens(name).values()) or "." in name:
                continue
            place = folder / f"{name}.{style}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(PICTURES):
                seed = FIRST_SEED + PICTURES * index + number
                scene = describe(sprites, seed, pair_share=0.0)
                item = replace(scene.items[0], sprite=index)
                picture = render(sprites, replace(scene, items=(item,), style=style))
                Image.fromarray(picture).save(place / f"{number}.png")


if __name__ == "__main__":
    main()

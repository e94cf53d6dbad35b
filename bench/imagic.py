"""Imagic on `tiny`: is the edited picture more like the photo than img2img's at equal prompt
following?

    OMP_NUM_THREADS=1 python -m bench.imagic --concepts cat fox [--steps 600]

The photo is one that the base draws of "a NOUN, on a blue background"; the target is "a NOUN, on a
red background". Likeness: cosine of image features (tiny's CLIP) between photo and edit. Prompt:
cosine of edit and target. Of img2img (strengths 0.3 to 1) the likeness is read where its prompt
following is that of the edit at the suggested eta, by straight lines between strengths.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konomi import tasks
from konomi.adapters.apply import Strengths, attach
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.infotext import save_png
from konomi.generation.request import EDIT_GUIDANCE, Request
from konomi.models.base import BaseModel
from konomi.models.clip import Clip, load_clip
from konomi.models.load import load_base
from konomi.tasks.edit_strip import ETAS, EtaScore, suggested

SEEDS = (0, 1)
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DRAWING_STEPS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["cat", "fox", "apple", "heart"])
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    base, clip = load_base("tiny"), load_clip("tiny")
    print("concept    eta   likeness  img2img   prompt  at eta 0  seconds")
    for noun in options.concepts:
        with TemporaryDirectory() as folder:
            print(f"{noun:<10} {row(base, clip, noun, options.steps, Path(folder))}", flush=True)


def row(base: BaseModel, clip: Clip, noun: str, steps: int, folder: Path) -> str:
    own = Request(prompt=f"a {noun}, on a blue background", seed=7, steps=25)
    (picture,) = generate(base, [own])
    path, target = save_png(picture, folder), f"a {noun}, on a red background"
    start = time.process_time()
    recipe = tasks.recipe_from_flags(
        "imagic",
        images=[path],
        base="tiny",
        output=str(folder / "run"),
        steps=steps,
        overrides=[f"method.prompt={target}", "run.preview_every=0", "run.batch_size=1"],
    )
    *_, finished = tasks.train(recipe)
    seconds = time.process_time() - start
    adapter = read_adapter(finished.path)
    assert adapter.edit is not None
    edits = []
    with attach(base, [(adapter, Strengths())]):
        for seed in SEEDS:
            asked = [
                Request(
                    prompt=target,
                    seed=seed,
                    steps=DRAWING_STEPS,
                    guidance=EDIT_GUIDANCE,
                    edit=adapter.edit,
                    eta=eta,
                )
                for eta in ETAS
            ]
            edits.append([one.image for one in generate(base, asked)])
    starts = [
        [
            Request(
                prompt=target, seed=seed, steps=DRAWING_STEPS, init=picture.image, strength=strength
            )
            for strength in STRENGTHS
        ]
        for seed in SEEDS
    ]
    others = [[one.image for one in generate(base, asked)] for asked in starts]
    photo_D = clip.image_features([picture.image])[0]
    text_D = clip.text_features([target])[0]
    like, follows = measured(clip, edits, photo_D, text_D)
    scores = [EtaScore(*values) for values in zip(ETAS, like, follows, strict=True)]
    best = next(score for score in scores if score.eta == suggested(scores))
    other_like, other_follows = measured(clip, others, photo_D, text_D)
    order = np.argsort(other_follows)
    equal = np.interp(best.prompt, np.array(other_follows)[order], np.array(other_like)[order])
    return (
        f"{best.eta:<5g} {best.likeness:.3f}     {equal:.3f}     {best.prompt:.3f}   "
        f"{scores[0].prompt:.3f}     {seconds:.0f}"
    )


def measured(
    clip: Clip, rows: list[list[Image.Image]], photo_D: Tensor, text_D: Tensor
) -> tuple[list[float], list[float]]:
    """Likeness and prompt following of each column, means over the seeds."""
    features = clip.image_features([image for row in rows for image in row])
    values = [
        (features @ vector).view(len(rows), -1).mean(0).tolist() for vector in (photo_D, text_D)
    ]
    return values[0], values[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

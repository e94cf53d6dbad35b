"""Aesthetic Gradients on `tiny`: do pictures move towards the mood of liked ones, what happens to
the prompt, and what it costs.

    OMP_NUM_THREADS=1 python -m bench.aesthetic [--steps 10 20] [--rate 1e-4] [--weight 1 0.5]

For each mood the base draws eight pictures, which `train_aesthetic` averages; then 20 other prompts
are drawn with and without tuning, from the same noise. Towards: how much the cosine between the
pictures' features (tiny's CLIP) and the embedding rises. Prompt: cosine of picture and its prompt.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from konomi import tasks
from konomi.config.aesthetic import AestheticConfig
from konomi.generation.aesthetic import AestheticGradients
from konomi.generation.generate import generate
from konomi.generation.infotext import save_png
from konomi.generation.request import Request
from konomi.models.base import BaseModel
from konomi.models.clip import Clip, load_clip
from konomi.models.load import load_base
from konomi.tasks.aesthetic_wish import read_wish

MOODS = {
    "red": "a {}, on a red background",
    "black": "a {}, on a black background",
    "yellow": "a {}, on a yellow background",
    "blob style": "a {}, blob style",
}
STEPS = 12
LIKED = ("cat", "heart", "star", "apple", "pizza", "sun", "fox", "mushroom")
PROMPTS = (
    "dog", "bear", "carrot", "cake", "frog", "panda", "lemon", "cherry", "koala", "tiger",
    "lion", "mouse", "rabbit", "cow", "pig", "tomato", "banana", "burger", "rose", "skull",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    parser.add_argument("--rate", type=float, nargs="+", default=[1e-4])
    parser.add_argument("--weight", type=float, nargs="+", default=[1.0])
    parser.add_argument("--mood", nargs="+", default=list(MOODS))
    options = parser.parse_args()
    base, clip = load_base("tiny"), load_clip("tiny")
    plain = drawn(base, None)
    print(f"prompt following, plain: {following(clip, plain.images):.3f}")
    print(f"seconds of a picture, plain: {plain.seconds:.2f}")
    for mood in options.mood:
        named = drawn(base, None, MOODS[mood])
        print(
            f"prompt following where the mood is named, {mood}: {following(clip, named.images):.3f}"
        )
    print("mood       steps  rate    weight towards         prompt  seconds")
    for mood in options.mood:
        with TemporaryDirectory() as folder:
            file = liked(base, MOODS[mood], Path(folder))
            for steps, rate, weight in product(options.steps, options.rate, options.weight):
                config = AestheticConfig(files=(f"{file}:{weight}",), steps=steps, rate=rate)
                print(f"{mood:<11}{row(base, clip, config, plain)}", flush=True)


def liked(base: BaseModel, template: str, folder: Path) -> Path:
    """The embedding of eight pictures."""
    requests = [
        Request(prompt=template.format(noun), seed=100 + i, steps=15)
        for i, noun in enumerate(LIKED)
    ]
    for picture in generate(base, requests, batch=8):
        save_png(picture, folder / "liked")
    return tasks.train_aesthetic([str(folder / "liked")], base="tiny", output=folder / "run")


@dataclass(frozen=True)
class Drawn:
    """The pictures of all prompts."""

    images: list[Image.Image]
    seconds: float
    """Of each, of one core."""


def drawn(base: BaseModel, gradients: AestheticGradients | None, template: str = "a {}") -> Drawn:
    prompts = [template.format(noun) for noun in PROMPTS]
    requests = [Request(prompt=prompt, seed=i, steps=STEPS) for i, prompt in enumerate(prompts)]
    start = time.process_time()
    images = [one.image for one in generate(base, requests, aesthetic=gradients)]
    return Drawn(images, (time.process_time() - start) / len(images))


def following(clip: Clip, images: list[Image.Image]) -> float:
    texts = clip.text_features([f"a {noun}" for noun in PROMPTS])
    return float((clip.image_features(images) * texts).sum(1).mean())


def row(base: BaseModel, clip: Clip, config: AestheticConfig, plain: Drawn) -> str:
    wish = read_wish(config)
    (direction_P,) = wish.directions.values()
    tuned = drawn(base, wish.on(base))
    before, after = (clip.image_features(one.images) @ direction_P for one in (plain, tuned))
    rise = after - before
    error = statistics.stdev(rise.tolist()) / len(rise) ** 0.5
    weight = config.files[0].rpartition(":")[2]
    return (
        f"{config.steps:<6} {config.rate:<7g} {weight:<6} {float(rise.mean()):+.3f} ± {error:.3f}"
        f"  {following(clip, tuned.images):.3f}   {tuned.seconds:.2f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

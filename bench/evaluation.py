"""Are scores, intervals and alarms right? Each figure beside the bar it should reach.

    python -m bench.evaluation                              scores and intervals, a few minutes
    python -m bench.evaluation --only photos --data ../shared/data
    python -m bench.evaluation --only runs --data ../shared/data --runs FOLDER --count 10

`runs` trains and draws three small runs for each of `--count` novel concepts, and keeps them in
`--runs`; asked again, it measures what is there.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench.short_runs import ShortRun, chosen_lessons, make, read
from bench.tiny import Figure
from PIL import Image, ImageFilter
from tools.tiny.scenes import STYLES, index_sprites, read_zip

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.constraints import breaches
from konomi.evaluation.encoders import load_encoder, load_encoders
from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.pictures import Material, Pictures, References
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.scorers import SCORERS
from konomi.evaluation.scorers.copies import align, matches
from konomi.evaluation.statistics import estimate, interval
from konomi.evaluation.summary import Candidate

CHOICES = ("coverage", "scores", "photos", "runs")
SHAPES = ((3, 3), (4, 4), (6, 4), (8, 4), (16, 4), (12, 8))
"""Prompts and seeds."""
EFFECTS = ((1, 0, 1), (1, 0.5, 1), (0, 0, 1), (1, 1, 0.3), (0.3, 1, 1))
"""Deviations of prompts, seeds and the rest."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.evaluation", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--only", choices=CHOICES, action="append", help="may be repeated")
    parser.add_argument("--tries", type=int, default=4000, help="tables of each kind")
    parser.add_argument("--data", type=Path, help="folder of the photographs and emoji")
    parser.add_argument("--runs", type=Path, help="where short runs are kept")
    parser.add_argument("--count", type=int, default=0, help="concepts to make runs of first")
    options = parser.parse_args()
    wanted = options.only or CHOICES[:2]
    print(f"{'':66} {'measured':>8}   bar")
    if "coverage" in wanted:
        print(*coverage(options.tries), sep="\n", flush=True)
    if "scores" in wanted:
        print(largest_error(), flush=True)
    if "photos" in wanted:
        print(*spoiled_photos(options.data / "dreambooth"), sep="\n", flush=True)
    if "runs" in wanted:
        if options.count:
            make_runs(options.runs, options.data, options.count)
        print(*alarms(list(read(options.runs))), sep="\n", flush=True)


def coverage(tries: int) -> list[Figure]:
    """How often intervals hold the truth: the least and the most of all kinds of tables."""
    drawn = np.random.default_rng(0)
    shares = []
    for (prompts, seeds), (a, b, e) in itertools.product(SHAPES, EFFECTS):
        inside = 0
        for _ in range(tries):
            table = a * drawn.normal(size=(prompts, 1)) + b * drawn.normal(size=(1, seeds))
            table = table + e * drawn.normal(size=(prompts, seeds))
            found = interval({p: float(v) for p, v in np.ndenumerate(table)}, resamples=100)
            inside += found.low <= 0 <= found.high
        shares.append(inside / tries)
    kinds = f"of {len(shares)} kinds of tables"
    return [
        Figure(f"95 % intervals hold the truth, least {kinds}", min(shares), "{:.1%}", 0.93),
        Figure(f"  most {kinds}", max(shares), "{:.1%}", 0.97, less_is_better=True),
        Figure("  mean", float(np.mean(shares)), "{:.1%}"),
    ]


def largest_error() -> Figure:
    """Scores by a random DINOv2 against transformers' processor and model and float64 numpy."""
    import torch
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config).eval()
    processor = BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        encoder = load_encoder(folder)
    texts = load_encoder("tiny")
    kinds = ("subject", "context", "class", "unrelated")
    prompts = tuple(EvaluationPrompt(kind, kind, kind) for kind in kinds)
    now, then, references = (_pictures(prompts, first) for first in (0, 100, 200))
    subject = tuple(references.images.values())[:5]
    material = Material(now, then, References(subject, True), (), Encoders(encoder, texts))

    def features(images: list[Image.Image]) -> np.ndarray:
        with torch.no_grad():
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            found = model(pixel_values=pixels).last_hidden_state[:, 0].double().numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    places = list(now.images)
    ours, base, real = (
        features(list(images)) for images in (now.images.values(), then.images.values(), subject)
    )
    row = {place: number for number, place in enumerate(places)}
    alike, before = (ours @ real.T).mean(1), (base @ real.T).mean(1)
    apart = 1 - (ours * base).sum(1)
    expected = {
        "likeness": {p: alike[row[p]] for p in places if p[0] < 2},
        "preservation": {p: alike[row[p]] for p in places if p[0] == 2},
        "leak": {p: alike[row[p]] - before[row[p]] for p in places if p[0] > 1},
        "drift": {p: apart[row[p]] for p in places if p[0] > 1},
        "diversity": {
            p: np.mean([1 - ours[row[p]] @ ours[row[q]] for q in places if q[0] == p[0] and q != p])
            for p in places
        },
    }
    scorers = {scorer.name: scorer for scorer in SCORERS}
    errors = [
        abs(value - expected[name][place])
        for name in expected
        for place, value in scorers[name].score(material).items()
    ]
    return Figure(
        "scores against transformers and float64 numpy, largest difference",
        max(errors), "{:.0e}", 1e-5, less_is_better=True,
    )  # fmt: skip


def _pictures(prompts: tuple[EvaluationPrompt, ...], first: int) -> Pictures:
    images = {}
    for number, place in enumerate((p, s) for p in range(len(prompts)) for s in range(3)):
        drawn = np.random.default_rng(first + number).integers(0, 255, (9, 7, 3), dtype=np.uint8)
        images[place] = Image.fromarray(drawn).resize((60 + number, 50))
    return Pictures(prompts, (0, 1, 2), images)


def spoiled_photos(folder: Path) -> Iterator[Figure]:
    """Photographs of a subject as training pictures: copies of them as a tuned model would draw
    them (moved, enlarged, blurred, of another contrast, noisy), and photographs that were left
    out. Doubles are in the data; those are left out.
    """
    drawn = np.random.default_rng(0)
    encoders = load_encoders("tiny", "tiny")
    found = []
    false = []
    for subject in sorted(child for child in folder.iterdir() if child.is_dir()):
        photos = [Image.open(path).convert("RGB") for path in sorted(subject.glob("*.jpg"))]
        photos = [one for n, one in enumerate(photos) if not _is_double(one, photos[:n])]
        for number, photo in enumerate(photos):
            others = [one for n, one in enumerate(photos) if n != number]
            copy = spoiled(photo, drawn)
            found.append(_is_copy(copy, photos, encoders))
            false.append(_is_copy(photo, others, encoders))
    yield Figure(
        f"{len(found)} spoiled copies of photographs found", np.mean(found), "{:.1%}", 0.95
    )
    yield Figure(
        "  other photographs of the same subject called copies",
        np.mean(false), "{:.1%}", 0.05, less_is_better=True,
    )  # fmt: skip


def _is_double(photo: Image.Image, others: list[Image.Image]) -> bool:
    return any(align(photo, other).structure > 0.995 for other in others)


def spoiled(image: Image.Image, drawn: np.random.Generator) -> Image.Image:
    width, height = image.size
    right, down = drawn.uniform(-0.08, 0.08, 2) * (width, height)
    zoom = drawn.uniform(0.92, 1.08)
    matrix = (zoom, 0, (1 - zoom) * width / 2 + right, 0, zoom, (1 - zoom) * height / 2 + down)
    moved = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    blurred = moved.filter(ImageFilter.GaussianBlur(width / drawn.uniform(40, 100)))
    values = np.asarray(blurred) * drawn.uniform(0.8, 1.2) + drawn.uniform(-15, 15)
    noisy = values + drawn.normal(0, 6, values.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _is_copy(drawn: Image.Image, training: list[Image.Image], encoders: Encoders) -> bool:
    prompt = (EvaluationPrompt("x", "subject", "x"),)
    one = Pictures(prompt, (0,), {(0, 0): drawn})
    nothing = Pictures(prompt, (0,), {})
    given = Material(one, nothing, References((), False), tuple(training), encoders)
    return matches(given)[0, 0].is_copy


def make_runs(folder: Path, data: Path, count: int) -> None:
    """Three runs of each of the first novel concepts."""
    sprites = read_zip(data / "emoji-novel.zip")
    novel = index_sprites([sprite for sprite in sprites if sprite.style in STYLES])
    for number, lesson in enumerate(chosen_lessons(novel, count)):
        for kind in ("ordinary", "memorised", "kept"):
            make(folder / f"{kind}-{number:02}", "tiny", novel, lesson, kind)


def alarms(runs: list[ShortRun]) -> Iterator[Figure]:
    """How many runs are told what they are."""
    encoders = load_encoders("tiny", "tiny")
    limits = SuggestionConfig()
    by_kind: dict[str, list[set[str]]] = {}
    for run in runs:
        by_kind.setdefault(run.kind, []).append(faults(run, encoders, limits))

    for kind, what, bar in (
        ("memorised", "made to memorise", 0.95),
        ("ordinary", "ordinary", 0.05),
        ("kept", "with class images", 0.05),
    ):
        if kind in by_kind:
            share = float(np.mean(["copies" in one for one in by_kind[kind]]))
            name = f"{len(by_kind[kind])} runs, {what}: copies"
            yield Figure(name, share, "{:.0%}", bar, less_is_better=bar < 0.5)
    if {"ordinary", "kept"} <= set(by_kind):
        told = ["leak" in one for one in by_kind["ordinary"]]
        told += ["leak" not in one for one in by_kind["kept"]]
        name = f"{len(told)} runs without and with class images told apart by their leak"
        yield Figure(name, float(np.mean(told)), "{:.0%}", 0.9)


def faults(run: ShortRun, encoders: Encoders, limits: SuggestionConfig) -> set[str]:
    """Names of the limits that a run breaks."""
    references = References(run.held_out, True)
    candidate, base = (
        Material(pictures, run.base, references, run.training, encoders)
        for pictures in (run.candidate, run.base)
    )
    ours, theirs = ({s.name: s.score(given) for s in SCORERS} for given in (candidate, base))
    found = [
        Candidate(
            id=name, label=name, method=name, file="", run="", step=0, weight=1.0, bytes=0,
            scores={n: estimate(v, beside.get(n) or None) for n, v in scores.items() if v},
            pictures={},
        )
        for name, scores, beside in (("lora", ours, theirs), ("base", theirs, {}))
    ]  # fmt: skip
    return {breach.kind for breach in breaches(found[0], found[1], limits)}


if __name__ == "__main__":
    main()

"""Small runs on `tiny` whose fault is known: what copies and leaks are found in.

Each is trained and drawn once; what was drawn is kept in a folder, so that scores and thresholds
can be looked at again without drawing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from tools.tiny.captions import with_article
from tools.tiny.scenes import STYLES, Sprites, render
from tools.tiny.teach import IDENTIFIER, Lesson, lessons, write_class, write_lesson

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.config.load import change_recipe
from konomi.config.recipe import Recipe
from konomi.config.sections import CacheConfig, DataConfig, RunConfig, SourceConfig
from konomi.evaluation.pictures import Pictures
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.methods.lora import LoraConfig
from konomi.models.base import BaseModel
from konomi.models.load import load_base

Kind = Literal["ordinary", "kept", "memorised"]
"""Four pictures and the defaults; the same beside class images; one picture and 800 steps."""
KINDS: tuple[Kind, ...] = ("ordinary", "kept", "memorised")
SEEDS = (11, 12)
MEMORISED_STEPS = 800


@dataclass(frozen=True, slots=True)
class ShortRun:
    """What one run was shown, and what it and the base draw."""

    name: str
    kind: Kind
    training: tuple[Image.Image, ...]
    held_out: tuple[Image.Image, ...]
    base: Pictures
    candidate: Pictures


def chosen_lessons(novel: Sprites, count: int) -> list[Lesson]:
    """Novel concepts in the three styles in turn."""
    by_style = {style: {one.name: one for one in lessons(novel, style)} for style in STYLES}
    found = []
    for number, name in enumerate(sorted(set().union(*by_style.values()))[:count]):
        turned = STYLES[number % 3 :] + STYLES[: number % 3]
        found.append(next(by_style[style][name] for style in turned if name in by_style[style]))
    return found


def prompts_of(lesson: Lesson) -> tuple[EvaluationPrompt, ...]:
    """None of them a training caption: a copy is what was not asked for."""
    style = lesson.shown[0].style
    subject, noun = f"{IDENTIFIER} {lesson.noun}", with_article(lesson.noun)
    named = with_article(subject)
    return (
        EvaluationPrompt(f"{named}, {style} style", "subject", f"{noun}, {style} style"),
        EvaluationPrompt(f"{named} next to a cat", "context", f"{noun} next to a cat"),
        EvaluationPrompt(f"{named} on a beach", "context", f"{noun} on a beach"),
        EvaluationPrompt(noun, "class", noun),
        EvaluationPrompt("a house", "unrelated", "a house"),
    )


def make(folder: Path, model: str, novel: Sprites, lesson: Lesson, kind: Kind) -> None:
    """Train, draw, and keep: nothing where it was done before."""
    if (folder / "prompts.json").is_file():
        return
    base = load_base(model)
    prompts = prompts_of(lesson)
    for name, scenes in (("training", lesson.shown), ("held_out", lesson.kept)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes[:1] if _is_one(kind, name) else scenes):
            Image.fromarray(render(novel, scene)).save(folder / name / f"{number}.png")
    _draw(base, prompts, folder / "base")
    with TemporaryDirectory() as scratch:
        adapter = read_adapter(_train(Path(scratch), model, base, novel, lesson, kind))
    with attach(base, [(adapter, Strengths())]):
        _draw(base, prompts, folder / "candidate")
    rows = [[p.text, p.kind, p.plain] for p in prompts]
    (folder / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")


def _is_one(kind: Kind, name: str) -> bool:
    return kind == "memorised" and name == "training"


def _train(
    scratch: Path, model: str, base: BaseModel, novel: Sprites, lesson: Lesson, kind: Kind
) -> Path:
    images = write_lesson(scratch / "images", novel, lesson)
    if kind == "memorised":
        rows = (images / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        (images / "metadata.jsonl").write_text(rows[0] + "\n", encoding="utf-8")
        for extra in images.glob("[1-9].png"):
            extra.unlink()
    sources = [SourceConfig(path=str(images), trigger=IDENTIFIER, class_noun=lesson.noun)]
    if kind == "kept":
        sources.append(
            SourceConfig(path=str(write_class(scratch / "class", base, lesson, 8)), role="prior")
        )
    recipe = Recipe(
        base=model,
        data=DataConfig(sources=tuple(sources), cache=CacheConfig(folder=str(scratch / "cache"))),
        method=LoraConfig(),
        run=RunConfig(output=str(scratch / "run"), name="lesson", device="cpu"),
    )
    changes = [f"run.steps={MEMORISED_STEPS}"] if kind == "memorised" else []
    for _ in konomi.train(change_recipe(recipe, changes)):
        pass
    return scratch / "run" / "lesson.safetensors"


def _draw(base: BaseModel, prompts: tuple[EvaluationPrompt, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    requests = [
        Request(prompt=prompt.text, seed=seed, steps=15, guidance=5.0)
        for prompt in prompts
        for seed in SEEDS
    ]
    places = [(p, s) for p in range(len(prompts)) for s in range(len(SEEDS))]
    for (p, s), picture in zip(places, generate(base, requests, batch=4)):
        picture.image.save(folder / f"{p}-{s}.png")


def read(folder: Path) -> Iterator[ShortRun]:
    """Every run that was made."""
    for kind in KINDS:
        for run in sorted(folder.glob(f"{kind}-*")):
            if (run / "prompts.json").is_file():
                yield _read(run, kind)


def _read(run: Path, kind: Kind) -> ShortRun:
    rows = json.loads((run / "prompts.json").read_text(encoding="utf-8"))
    prompts = tuple(EvaluationPrompt(*row) for row in rows)

    def pictures(name: str) -> Pictures:
        images = {
            (p, s): Image.open(run / name / f"{p}-{s}.png").convert("RGB")
            for p in range(len(prompts))
            for s in range(len(SEEDS))
        }
        return Pictures(prompts, SEEDS, images)

    def all_of(name: str) -> tuple[Image.Image, ...]:
        return tuple(Image.open(p).convert("RGB") for p in sorted((run / name).glob("*.png")))

    return ShortRun(
        run.name,
        kind,
        all_of("training"),
        all_of("held_out"),
        pictures("base"),
        pictures("candidate"),
    )

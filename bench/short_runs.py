"""Small runs on `tiny` whose fault is known: what copies, leaks and the best file are found in.

Each is trained and drawn once, with prompts like those of `konomi evaluate` in the words of the
captions, ten sampling steps, in bf16; what was drawn is kept in a folder, so that scores and
thresholds can be looked at again without drawing. Runs with class images have eight saves, and are
drawn once more for the captions of scenes that nobody was shown: what the suggestion should have
been.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from PIL import Image
from tools.tiny.scenes import STYLES, Sprites, render
from tools.tiny.teach import IDENTIFIER, Lesson, lessons, words_for, write_class, write_lesson

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.config.load import change_recipe
from konomi.config.recipe import Recipe
from konomi.config.sections import CacheConfig, DataConfig, RunConfig, SourceConfig
from konomi.evaluation.pictures import Pictures
from konomi.evaluation.prompts import EvaluationPrompt, Subject, prompts_of
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.methods.lora import LoraConfig
from konomi.models.base import BaseModel
from konomi.models.load import load_base

Kind = Literal["ordinary", "kept", "memorised"]
"""Four pictures and the defaults; the same beside class images; one picture and twice the steps."""
KINDS: tuple[Kind, ...] = ("kept", "ordinary", "memorised")
STEPS: dict[Kind, int] = {"kept": 320, "ordinary": 320, "memorised": 640}
SAVES: dict[Kind, int] = {"kept": 8, "ordinary": 1, "memorised": 1}
SEEDS = (0, 1, 2)
PLACES = ("blue background", "green background with white dots", "yellow background")
SCENE_SEEDS = (101, 102, 103)
"""Other noise than what the rule saw."""


@dataclass(frozen=True, slots=True)
class Save:
    """What one saved file of a run draws."""

    step: int
    pictures: Pictures
    scenes: Pictures
    """Of the captions of held-out scenes; without images where the run has one save only."""


@dataclass(frozen=True, slots=True)
class ShortRun:
    """What one run was shown, and what it and the base draw."""

    name: str
    kind: Kind
    training: tuple[Image.Image, ...]
    held_out: tuple[Image.Image, ...]
    base: Pictures
    saves: tuple[Save, ...]
    """The earliest first."""

    @property
    def candidate(self) -> Pictures:
        return self.saves[-1].pictures


def chosen_lessons(novel: Sprites, count: int) -> list[Lesson]:
    """Novel concepts in the three styles in turn."""
    by_style = {style: {one.name: one for one in lessons(novel, style)} for style in STYLES}
    found = []
    for number, name in enumerate(sorted(set().union(*by_style.values()))[:count]):
        turned = STYLES[number % 3 :] + STYLES[: number % 3]
        found.append(next(by_style[style][name] for style in turned if name in by_style[style]))
    return found


def shown_prompts(lesson: Lesson) -> tuple[EvaluationPrompt, ...]:
    """What the rule sees. The captions name the style of the drawing, so whoever calls the subject
    names it too; without it `tiny` draws the class."""
    style = f"{lesson.shown[0].style} style"
    lines = [f"a {{}}, {style}"]
    lines += [f"a {{}}, {style}, on a {place}" for place in PLACES]
    lines += [
        f"a {lesson.noun}",
        f"a {lesson.noun} on a {PLACES[0]}",
        "a house on a blue background",
    ]
    return prompts_of(lines, Subject(IDENTIFIER, lesson.noun))


def scene_prompts(lesson: Lesson) -> tuple[EvaluationPrompt, ...]:
    """The captions of the scenes that were kept aside."""
    subject = f"{IDENTIFIER} {lesson.noun}"
    return tuple(
        EvaluationPrompt(words_for(subject, scene), "context", words_for(lesson.noun, scene))
        for scene in lesson.kept
    )


def make(folder: Path, model: str, novel: Sprites, lesson: Lesson, kind: Kind) -> None:
    """Train, draw, and keep: nothing where it was done before."""
    if (folder / "prompts.json").is_file():
        return
    prompts = shown_prompts(lesson)
    scenes = scene_prompts(lesson)
    for name, shown in (("training", lesson.shown), ("held_out", lesson.kept)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(shown[:1] if _is_one(kind, name) else shown):
            Image.fromarray(render(novel, scene)).save(folder / name / f"{number}.png")
    with TemporaryDirectory() as scratch:
        files = _train(Path(scratch), model, novel, lesson, kind)
        base = load_base(model)
        base.place("cpu", torch.bfloat16)
        _draw(base, prompts, SEEDS, folder / "base")
        for step, file in files.items():
            with attach(base, [(read_adapter(file), Strengths())]):
                _draw(base, prompts, SEEDS, folder / f"save-{step:04}")
                if len(files) > 1:
                    _draw(base, scenes, SCENE_SEEDS, folder / f"scenes-{step:04}")
    rows = {
        name: [[p.text, p.kind, p.plain] for p in some]
        for name, some in (("prompts", prompts), ("scenes", scenes))
    }
    (folder / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")


def _is_one(kind: Kind, name: str) -> bool:
    return kind == "memorised" and name == "training"


def _train(
    scratch: Path, model: str, novel: Sprites, lesson: Lesson, kind: Kind
) -> dict[int, Path]:
    """Step -> saved file."""
    images = write_lesson(scratch / "images", novel, lesson)
    if kind == "memorised":
        rows = (images / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        (images / "metadata.jsonl").write_text(rows[0] + "\n", encoding="utf-8")
        for extra in images.glob("[1-9].png"):
            extra.unlink()
    sources = [SourceConfig(path=str(images), trigger=IDENTIFIER, class_noun=lesson.noun)]
    if kind == "kept":
        base = load_base(model)
        base.place("cpu", torch.bfloat16)
        pictures = write_class(scratch / "class", base, lesson, 8)
        sources.append(SourceConfig(path=str(pictures), role="prior"))
    recipe = Recipe(
        base=model,
        data=DataConfig(sources=tuple(sources), cache=CacheConfig(folder=str(scratch / "cache"))),
        method=LoraConfig(),
        run=RunConfig(output=str(scratch / "run"), name="lesson", device="cpu", trackers=()),
    )
    each = STEPS[kind] // SAVES[kind]
    changes = [f"run.steps={STEPS[kind]}", f"run.save_every={each}", "run.preview_every=0"]
    for _ in konomi.train(change_recipe(recipe, [*changes, "run.checkpoint_every=0"])):
        pass
    files = sorted((scratch / "run").glob("lesson-step*.safetensors"))
    found = {int(file.stem.rpartition("step")[2]): file for file in files}
    found[STEPS[kind]] = scratch / "run" / "lesson.safetensors"
    return found


def _draw(
    base: BaseModel, prompts: tuple[EvaluationPrompt, ...], seeds: tuple[int, ...], folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    places = [(p, s) for p in range(len(prompts)) for s in range(len(seeds))]
    requests = [
        Request(prompt=prompts[p].text, seed=seeds[s], steps=10, guidance=5.0) for p, s in places
    ]
    for (p, s), picture in zip(places, generate(base, requests, batch=12), strict=True):
        picture.image.save(folder / f"{p}-{s}.png")


def read(folder: Path) -> Iterator[ShortRun]:
    """Every run that was made."""
    for kind in KINDS:
        for run in sorted(folder.glob(f"{kind}-*")):
            if (run / "prompts.json").is_file():
                yield _read(run, kind)


def _read(run: Path, kind: Kind) -> ShortRun:
    rows = json.loads((run / "prompts.json").read_text(encoding="utf-8"))
    prompts, scenes = (tuple(EvaluationPrompt(*row) for row in rows[n]) for n in rows)

    def pictures(name: str) -> Pictures:
        of_scenes = name.startswith("scenes")
        wanted, seeds = (scenes, SCENE_SEEDS) if of_scenes else (prompts, SEEDS)
        images = {
            (p, s): Image.open(run / name / f"{p}-{s}.png").convert("RGB")
            for p in range(len(wanted))
            for s in range(len(seeds))
            if (run / name).is_dir()
        }
        return Pictures(wanted, seeds, images)

    def all_of(name: str) -> tuple[Image.Image, ...]:
        return tuple(Image.open(p).convert("RGB") for p in sorted((run / name).glob("*.png")))

    steps = [child.name.rpartition("-")[2] for child in sorted(run.glob("save-*"))]
    saves = tuple(
        Save(int(step), pictures(f"save-{step}"), pictures(f"scenes-{step}")) for step in steps
    )
    return ShortRun(run.name, kind, all_of("training"), all_of("held_out"), pictures("base"), saves)

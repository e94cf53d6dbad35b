"""Can `tiny` be taught? LoRA on a few scenes of a concept it has never seen, and what becomes of
it and of its class.

Likeness is the mean cosine of image features (the CLIP's image encoder) between pictures drawn for
the captions of scenes kept aside and those scenes themselves.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tools.tiny.captions import with_article
from tools.tiny.clip import ClipModel
from tools.tiny.prompt_following import draw
from tools.tiny.scenes import Scene, Sprites, describe, render
from tools.tiny.style import image_features
from torch import Tensor

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.config.load import change_recipe
from konomi.config.recipe import Recipe
from konomi.config.sections import CacheConfig, DataConfig, RunConfig, SourceConfig
from konomi.formats.adapter_file import read_adapter
from konomi.methods.lora import LoraConfig
from konomi.models.base import BaseModel
from konomi.models.load import load_base

IDENTIFIER = "zwx"
CLASS_NOUNS = {
    "avocado": "fruit", "backpack": "bag", "bento box": "food", "cactus": "plant", "crown": "hat",
    "crystal ball": "ball", "cupcake": "cake", "flamingo": "bird", "guitar": "instrument",
    "hamburger": "food",
    "hedgehog": "animal", "helicopter": "vehicle", "honeybee": "insect", "koala": "bear",
    "lobster": "crab",
    "microscope": "tool", "octopus": "animal", "panda": "bear", "penguin": "bird",
    "pineapple": "fruit",
    "red paper lantern": "light", "rocket": "vehicle", "snowman": "person", "sunflower": "flower",
    "t-rex": "dragon",
    "teapot": "pot", "teddy bear": "bear", "tractor": "vehicle", "trophy": "cup",
    "unicorn": "horse",
}  # fmt: skip
"""What each novel concept is, in a word that `tiny` knows from captions."""
NUM_SCENES = 4
NUM_CLASS_PICTURES = 8
GUIDANCE = 5.0
FIRST_SEED = 970_000_000


@dataclass(frozen=True, slots=True)
class Lesson:
    """One novel concept in one style."""

    name: str
    noun: str
    shown: tuple[Scene, ...]
    """To learn from."""
    kept: tuple[Scene, ...]
    """To compare with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one lesson changed."""

    name: str
    seconds: float
    """Of training, from `konomi train` to the file."""
    likeness_before: float
    """Base with the class word."""
    likeness_after: float
    class_drift: float
    """How much nearer to the concept pictures of the class without the identifier have come."""


def lessons(novel: Sprites, style: str) -> list[Lesson]:
    """All novel concepts that a style draws: single drawings on plain backgrounds, none of them at
    a place.
    """
    found = []
    for number, name in enumerate(novel.names):
        members = [i for i in novel.by_style[style] if novel.all[i].name == name]
        if not members:
            continue
        scenes = _scenes_of(novel, members[0], style, FIRST_SEED + 10_000 * number)
        found.append(
            Lesson(name, CLASS_NOUNS[name], tuple(scenes[:NUM_SCENES]), tuple(scenes[NUM_SCENES:]))
        )
    return found


def _scenes_of(novel: Sprites, sprite: int, style: str, seed: int) -> list[Scene]:
    """Twice as many scenes as are shown, each on another background colour."""
    scenes: list[Scene] = []
    colours: set[str] = set()
    while len(scenes) < 2 * NUM_SCENES:
        seed += 1
        drawn = describe(novel, seed, pair_share=0.0)
        plain = drawn.background.kind == "plain" and not drawn.items[0].place
        if plain and drawn.background.colour not in colours:
            colours.add(drawn.background.colour)
            scenes.append(
                replace(drawn, items=(replace(drawn.items[0], sprite=sprite),), style=style)
            )
    return scenes


def words_for(subject: str, scene: Scene) -> str:
    return (
        f"{with_article(subject)}, {scene.style} style, on a {scene.background.colour} background"
    )


def teach(
    model: str,
    clip_model: ClipModel,
    novel: Sprites,
    lesson: Lesson,
    *,
    prior: bool,
    settings: Sequence[str] = (),
) -> Outcome:
    """Train on the shown scenes with konomi's defaults; `prior`: with class pictures of the base's
    own.
    """
    base = load_base(model)
    truth = image_features(clip_model, [render(novel, scene) for scene in lesson.kept])
    ordinary = [words_for(lesson.noun, scene) for scene in lesson.kept]
    own = [words_for(f"{IDENTIFIER} {lesson.noun}", scene) for scene in lesson.kept]
    classes = [with_article(lesson.noun)] * NUM_CLASS_PICTURES
    before = likeness(clip_model, draw(base, ordinary, guidance=GUIDANCE), truth)
    class_before = likeness(
        clip_model, draw(base, classes, guidance=GUIDANCE), truth, matched=False
    )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = write_lesson(folder / "images", novel, lesson)
        sources = [SourceConfig(path=str(images), trigger=IDENTIFIER, class_noun=lesson.noun)]
        if prior:
            sources.append(
                SourceConfig(path=str(write_class(folder / "class", base, lesson)), role="prior")
            )
        recipe = Recipe(
            base=model,
            data=DataConfig(
                sources=tuple(sources), cache=CacheConfig(folder=str(folder / "cache"))
            ),
            method=LoraConfig(),
            run=RunConfig(output=str(folder / "run"), name="lesson", device="cpu"),
        )
        started = time.monotonic()
        for _ in konomi.train(change_recipe(recipe, list(settings))):
            pass
        seconds = time.monotonic() - started
        adapter = read_adapter(folder / "run" / "lesson.safetensors")
    with attach(base, [(adapter, Strengths())]):
        after = likeness(clip_model, draw(base, own, guidance=GUIDANCE), truth)
        class_after = likeness(
            clip_model, draw(base, classes, guidance=GUIDANCE), truth, matched=False
        )
    return Outcome(lesson.name, seconds, before, after, class_after - class_before)


def write_lesson(folder: Path, novel: Sprites, lesson: Lesson) -> Path:
    """Pictures and captions as a user would have them."""
    folder.mkdir(parents=True)
    rows = []
    for number, scene in enumerate(lesson.shown):
        Image.fromarray(render(novel, scene)).save(folder / f"{number}.png")
        rows.append(
            {"file_name": f"{number}.png", "text": words_for(f"{IDENTIFIER} {lesson.noun}", scene)}
        )
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def write_class(folder: Path, base: BaseModel, lesson: Lesson, count: int = 24) -> Path:
    """Pictures of the class, drawn by the untouched base."""
    folder.mkdir(parents=True)
    caption = with_article(lesson.noun)
    rows = []
    for number, picture in enumerate(
        draw(base, [caption] * count, guidance=GUIDANCE, first_seed=5_000)
    ):
        Image.fromarray(picture).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": caption})
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def likeness(
    clip_model: ClipModel, pictures: list[np.ndarray], truth: Tensor, *, matched: bool = True
) -> float:
    """Mean cosine to the true scenes: each to its own, or to all where pictures have no scene of
    their own.
    """
    found = image_features(clip_model, pictures)
    return float((found * truth).sum(1).mean() if matched else (found @ truth.T).mean())

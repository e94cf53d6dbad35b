"""Stage 4: scenes as a folder that konomi trains on: PNG files and `metadata.jsonl`."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tools.tiny.captions import caption
from tools.tiny.scenes import SIDE, Scene, Sprites, describe, index_sprites, load_sprites, render

FIRST_SEED = 400_000_000

KNOWN_GROUPS = (3, 4)
"""Emoji groups that the denoiser learns: animals and plants, food. With them come FAVOURITES of
other groups. What a training on a CPU can learn is some hundred things well or all badly; text and
image encoder know all names."""
PAIR_SHARE = 0.35

_FAVOURITES = """
    cat, cat face, dog, dog face, lion, tiger face, fox, wolf, frog, pig face, cow face, mouse face,
    rabbit face, bear,
    monkey face, chicken, duck, parrot, fish, tropical fish, dolphin, spouting whale, shark, crab,
    snail, lady beetle,
    snake, elephant, horse face, dragon face, tulip, cherry blossom, four leaf clover, evergreen
    tree, deciduous tree,
    palm tree, pizza, red apple, green apple, banana, grapes, watermelon, lemon, tangerine,
    cherries, peach, pear,
    carrot, tomato, ear of corn, bread, cheese wedge, hot dog, french fries, cookie, birthday cake,
    shortcake,
    ice cream, lollipop, hot beverage, egg, rice ball, soccer ball, basketball, red heart, yellow
    heart, green heart,
    blue heart, star, sun, crescent moon, full moon, cloud, rainbow, umbrella, automobile, key,
    light bulb,
    wrapped gift, balloon, bell, grinning face, smiling face with sunglasses, smiling face with
    heart-eyes,
    crying face, angry face, ghost, alien, alien monster, robot, skull, ogre, goblin, face with
    tears of joy,
    winking face"""
FAVOURITES = frozenset(" ".join(name.split()) for name in _FAVOURITES.split(","))
"""A part of the scenes shows nothing else."""

NEAR = 1.25
"""At 96 pixels single drawings in the middle come larger, so that their strokes are as wide as at
128."""


def known_sprites(folder: Path) -> Sprites:
    """The drawings that the denoiser learns, each as likely as any other of its style."""
    everything = load_sprites(folder)
    known = [s for s in everything.all if s.group in KNOWN_GROUPS or s.name in FAVOURITES]
    return index_sprites(known, {})


BAND = SIDE // 2
"""Height in pixels of a pair's picture without what is above and below: half of what there is to
compute."""


def nearer(scene: Scene) -> Scene:
    item = scene.items[0]
    if len(scene.items) > 1 or item.place:
        return scene
    return replace(scene, items=(replace(item, size=min(0.98, item.size * NEAR)),))


def scenes_from(
    sprites: Sprites, first_seed: int, *, only: frozenset[str] = frozenset()
) -> Iterator[Scene]:
    """Endless; with `only`, scenes of those concepts."""
    for seed in itertools.count(first_seed):
        scene = describe(sprites, seed, pair_share=PAIR_SHARE)
        if not only or all(sprites.all[item.sprite].name in only for item in scene.items):
            yield scene


def pairs_from(sprites: Sprites, first_seed: int) -> Iterator[Scene]:
    """Endless scenes of two things."""
    scenes = (describe(sprites, seed, pair_share=1.0) for seed in itertools.count(first_seed))
    return (scene for scene in scenes if len(scene.items) == 2)


def bands_from(sprites: Sprites, first_seed: int) -> Iterator[Scene]:
    """Endless scenes of two things side by side, at the height of the middle."""
    for scene in pairs_from(sprites, first_seed):
        if scene.relation == "next to":
            level = tuple(replace(item, centre=(item.centre[0], 0.5)) for item in scene.items)
            yield replace(scene, items=level)


def render_band(sprites: Sprites, scene: Scene) -> np.ndarray:
    """The middle of a scene's picture: uint8 [BAND, SIDE, 3]."""
    above = (SIDE - BAND) // 2
    return render(sprites, scene)[above : above + BAND]


def write_mixture(
    sprites: Sprites, folder: Path, *, count: int, side: int, lot: int
) -> tuple[Path, ...]:
    """Folders of scenes: half pairs, an eighth favourites, the others of all that is known. Each
    `lot` differs.
    """
    first = FIRST_SEED + 4 * 10**8 * lot + (2 * 10**8 if side == SIDE else 0)
    favourites, pairs = count // 8, count // 2
    sources = (
        ("all", count - favourites - pairs, scenes_from(sprites, first)),
        ("favourites", favourites, scenes_from(sprites, first + 10**8, only=FAVOURITES)),
        ("pairs", pairs, pairs_from(sprites, first + 15 * 10**7)),
    )

    def picture(scene: Scene) -> np.ndarray:
        return render(sprites, scene, side)

    return tuple(
        write_dataset(
            sprites, folder / name, map(nearer, scenes) if side < SIDE else scenes, number, picture
        )
        for name, number, scenes in sources
    )


def write_bands(sprites: Sprites, folder: Path, *, count: int, lot: int) -> tuple[Path, ...]:
    """Folder of pairs, SIDE x BAND pixels."""
    scenes = bands_from(sprites, FIRST_SEED + 4 * 10**8 * lot + 35 * 10**7)
    return (
        write_dataset(
            sprites, folder / "bands", scenes, count, lambda scene: render_band(sprites, scene)
        ),
    )


def write_dataset(
    sprites: Sprites,
    folder: Path,
    scenes: Iterable[Scene],
    count: int,
    picture: Callable[[Scene], np.ndarray],
) -> Path:
    """Draw what is missing of the first `count` scenes. Returns the folder of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, scene in enumerate(itertools.islice(scenes, count)):
        path = folder / f"scene-{number:06d}.png"
        rows.append({"file_name": path.name, "text": caption(sprites, scene, 0)})
        if not path.exists():
            part = path.with_suffix(".part")
            Image.fromarray(picture(scene)).save(part, format="PNG", compress_level=1)
            part.replace(path)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder

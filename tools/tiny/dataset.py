"""Stage 4: scenes as a folder that konomi trains on: PNG files and `metadata.jsonl`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tools.tiny.captions import caption
from tools.tiny.scenes import SIDE, Scene, Sprites, describe, index_sprites, load_sprites, render

FIRST_SEED = 400_000_000

KNOWN_GROUPS = (3, 4)
"""Emoji groups that the denoiser learns: animals and plants, food. With them come FAVOURITES of other groups. What a
training on a CPU can learn is some hundred things well or all badly; text and image tower know all names."""
PAIR_SHARE = 0.35

_FAVOURITES = """
    cat, cat face, dog, dog face, lion, tiger face, fox, wolf, frog, pig face, cow face, mouse face, rabbit face, bear,
    monkey face, chicken, duck, parrot, fish, tropical fish, dolphin, spouting whale, shark, crab, snail, lady beetle,
    snake, elephant, horse face, dragon face, tulip, cherry blossom, four leaf clover, evergreen tree, deciduous tree,
    palm tree, pizza, red apple, green apple, banana, grapes, watermelon, lemon, tangerine, cherries, peach, pear,
    carrot, tomato, ear of corn, bread, cheese wedge, hot dog, french fries, cookie, birthday cake, shortcake,
    ice cream, lollipop, hot beverage, egg, rice ball, soccer ball, basketball, red heart, yellow heart, green heart,
    blue heart, star, sun, crescent moon, full moon, cloud, rainbow, umbrella, automobile, key, light bulb,
    wrapped gift, balloon, bell, grinning face, smiling face with sunglasses, smiling face with heart-eyes,
    crying face, angry face, ghost, alien, alien monster, robot, skull, ogre, goblin, face with tears of joy,
    winking face"""
FAVOURITES = frozenset(name.strip() for name in _FAVOURITES.split(","))
"""Every fourth scene shows nothing else."""

NEAR = 1.25
"""At 96 pixels single drawings in the middle come larger, so that their strokes are as wide as at 128."""


def known_sprites(folder: Path) -> Sprites:
    """The drawings that the denoiser learns, each as likely as any other of its style."""
    everything = load_sprites(folder)
    known = [s for s in everything.all if s.group in KNOWN_GROUPS or s.name in FAVOURITES]
    return index_sprites(known, {})


def nearer(scene: Scene) -> Scene:
    item = scene.items[0]
    if len(scene.items) > 1 or item.place:
        return scene
    return replace(scene, items=(replace(item, size=min(0.98, item.size * NEAR)),))


def scenes_from(sprites: Sprites, first_seed: int, *, only: frozenset[str]) -> Iterator[Scene]:
    """Endless; with `only`, scenes of those concepts."""
    seed = first_seed
    while True:
        scene = describe(sprites, seed, pair_share=PAIR_SHARE)
        if not only or all(sprites.all[item.sprite].name in only for item in scene.items):
            yield scene
        seed += 1


def write_mixture(sprites: Sprites, folder: Path, *, count: int, side: int, lot: int) -> tuple[Path, ...]:
    """Folders of scenes, three quarters of all that is known and one of favourites. Each `lot` has others."""
    first = FIRST_SEED + 4 * 10**8 * lot + (2 * 10**8 if side == SIDE else 0)
    known = count // 4
    return (
        write_dataset(sprites, folder / "all", count=count - known, side=side, first_seed=first),
        write_dataset(
            sprites, folder / "favourites", count=known, side=side, first_seed=first + 10**8, only=FAVOURITES
        ),
    )


def write_dataset(
    sprites: Sprites, folder: Path, *, count: int, side: int, first_seed: int, only: frozenset[str] = frozenset()
) -> Path:
    """Render what is missing of `count` scenes. Returns the folder of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, drawn in zip(range(count), scenes_from(sprites, first_seed, only=only)):
        scene = nearer(drawn) if side < SIDE else drawn
        path = folder / f"scene-{number:06d}.png"
        rows.append({"file_name": path.name, "text": caption(sprites, scene, 0)})
        if not path.exists():
            part = path.with_suffix(".part")
            Image.fromarray(render(sprites, scene, side)).save(part, format="PNG", compress_level=1)
            part.replace(path)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder

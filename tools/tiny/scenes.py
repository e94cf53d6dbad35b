"""Scenes composed from emoji sprites, with captions: the training pictures of `tiny`.

A scene is a pure function of (sprites, seed): `describe` draws what is in it, `render` draws the
pixels. Pictures are RGB uint8 [H, W, 3]; places and sizes are fractions of the side.
"""

import io
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

STYLES = ("noto", "twemoji", "blob")
SIDE = 128

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (246, 138, 30),
    "yellow": (250, 218, 62),
    "green": (58, 166, 74),
    "teal": (24, 142, 142),
    "light blue": (140, 206, 240),
    "blue": (44, 88, 210),
    "purple": (128, 60, 180),
    "pink": (248, 160, 200),
    "brown": (126, 80, 48),
    "black": (22, 22, 24),
    "gray": (132, 132, 134),
    "white": (250, 250, 250),
    "cream": (244, 230, 196),
}
"""Named background colours, far enough apart that a border pixel tells which one was meant."""

PATTERNS = ("dots", "stripes", "checks")

PLACES: dict[str, tuple[float, float]] = {
    "at the top left": (0.27, 0.27),
    "at the top": (0.5, 0.27),
    "at the top right": (0.73, 0.27),
    "on the left": (0.27, 0.5),
    "in the center": (0.5, 0.5),
    "on the right": (0.73, 0.5),
    "at the bottom left": (0.27, 0.73),
    "at the bottom": (0.5, 0.73),
    "at the bottom right": (0.73, 0.73),
}

GROUP_WEIGHTS = {0: 1.0, 1: 0.5, 2: 0.3, 3: 1.5, 4: 1.4, 5: 1.0, 6: 1.2, 7: 1.1, 8: 0.45}
"""Emoji groups: things a person asks for are drawn more often than near-identical people and
signs."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """One drawing: a concept in a style."""

    name: str
    tags: tuple[str, ...]
    group: int
    style: str
    image: Image.Image
    """RGBA."""


@dataclass(frozen=True, slots=True)
class Sprites:
    """All drawings, and how likely each is."""

    all: tuple[Sprite, ...]
    by_style: dict[str, tuple[int, ...]]
    weights: dict[str, np.ndarray]
    names: tuple[str, ...]
    """Distinct concept names, sorted."""


@dataclass(frozen=True, slots=True)
class Item:
    """One drawing in a scene."""

    sprite: int
    centre: tuple[float, float]
    size: float
    place: str = ""
    """In words; empty where it does not matter."""
    size_word: str = ""


@dataclass(frozen=True, slots=True)
class Background:
    kind: str
    """`plain`, `gradient`, or one of PATTERNS."""
    colour: str
    second: str = ""
    jitter: tuple[int, int, int] = (0, 0, 0)
    turn: float = 0.0
    """Direction of gradient or stripes, in radians."""
    period: float = 0.2


@dataclass(frozen=True, slots=True)
class Scene:
    items: tuple[Item, ...]
    style: str
    background: Background
    relation: str = ""
    """`next to`, `above` or empty."""
    seed: int = field(default=0)


def clean_name(name: str) -> str:
    """An emoji's name in the plain words of a prompt: no brackets, colons or quotes that prompts
    read otherwise.
    """
    plain = name.lower().replace("’", "'")
    plain = re.sub(r"[“”()!:,*#]", " ", plain)
    return re.sub(r"\s+", " ", plain).strip() or "sign"


def load_sprites(folder: Path) -> Sprites:
    """Read emoji-STYLE.zip of each style from a folder; each holds WebP files and
    `metadata.jsonl`.
    """
    found: list[Sprite] = []
    for style in STYLES:
        found += read_zip(folder / f"emoji-{style}.zip")
    return index_sprites(found)


def read_zip(path: Path) -> list[Sprite]:
    """All sprites of one archive, in the order of its metadata."""
    sprites = []
    with zipfile.ZipFile(path) as archive:
        for line in archive.read("metadata.jsonl").decode("utf-8").splitlines():
            row = json.loads(line)
            with Image.open(io.BytesIO(archive.read(row["file_name"]))) as image:
                pixels = image.convert("RGBA")
            name = clean_name(row["name"])
            tags = tuple(
                t for t in dict.fromkeys(clean_name(tag) for tag in row["tags"]) if t != name
            )
            sprites.append(Sprite(name, tags, int(row["group"]), row["style"], pixels))
    return sprites


def index_sprites(
    sprites: list[Sprite], group_weights: dict[int, float] = GROUP_WEIGHTS
) -> Sprites:
    """Group by style and weigh by emoji group."""
    styles = dict.fromkeys(sprite.style for sprite in sprites)
    by_style = {
        s: tuple(i for i, sprite in enumerate(sprites) if sprite.style == s) for s in styles
    }
    weights = {}
    for style, members in by_style.items():
        raw = np.array([group_weights.get(sprites[i].group, 1.0) for i in members])
        weights[style] = np.cumsum(raw / raw.sum())
    return Sprites(tuple(sprites), by_style, weights, tuple(sorted({x.name for x in sprites})))


def describe(sprites: Sprites, seed: int, *, pair_share: float = 0.2) -> Scene:
    """Draw what is in scene number `seed`."""
    rng = np.random.default_rng((seed, 0x5CE7E))
    style = str(rng.choice(list(sprites.by_style)))
    background = _draw_background(rng)
    first = _draw_sprite(sprites, style, rng)
    if rng.random() < pair_share:
        second = _draw_sprite(sprites, style, rng)
        if second != first:
            return _pair(first, second, style, background, rng, seed)
    return Scene((_single(first, rng),), style, background, seed=seed)


def _draw_sprite(sprites: Sprites, style: str, rng: np.random.Generator) -> int:
    at = int(np.searchsorted(sprites.weights[style], rng.random()))
    return sprites.by_style[style][min(at, len(sprites.by_style[style]) - 1)]


def _single(sprite: int, rng: np.random.Generator) -> Item:
    kind = rng.random()
    wobble = rng.uniform(-0.03, 0.03, 2)
    if kind < 0.25:
        place = str(rng.choice(list(PLACES)))
        x, y = PLACES[place]
        return Item(sprite, (x + wobble[0], y + wobble[1]), rng.uniform(0.36, 0.48), place, "small")
    if kind < 0.75:
        return Item(sprite, (0.5 + wobble[0], 0.5 + wobble[1]), rng.uniform(0.62, 0.78))
    centre = (0.5 + wobble[0] / 2, 0.5 + wobble[1] / 2)
    return Item(sprite, centre, rng.uniform(0.84, 0.96), "", str(rng.choice(["large", "big"])))


def _pair(
    first: int, second: int, style: str, background: Background, rng: np.random.Generator, seed: int
) -> Scene:
    wobble = rng.uniform(-0.025, 0.025, 4)
    size = rng.uniform(0.42, 0.5)
    if rng.random() < 0.7:
        spots, relation = ((0.26, 0.5), (0.74, 0.5)), "next to"
    else:
        spots, relation = ((0.5, 0.26), (0.5, 0.74)), "above"
    items = tuple(
        Item(sprite, (x + wobble[2 * k], y + wobble[2 * k + 1]), size)
        for k, (sprite, (x, y)) in enumerate(zip((first, second), spots))
    )
    return Scene(items, style, background, relation, seed)


def _draw_background(rng: np.random.Generator) -> Background:
    colour, second = (str(c) for c in rng.choice(list(COLOURS), 2, replace=False))
    red, green, blue = (int(v) for v in rng.integers(-9, 10, 3))
    jitter = (red, green, blue)
    kind = rng.random()
    turn = float(rng.choice([0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]))
    if kind < 0.66:
        return Background("plain", colour, "", jitter)
    if kind < 0.83:
        return Background("gradient", colour, second, jitter, float(rng.choice([0.0, np.pi / 2])))
    return Background(
        str(rng.choice(PATTERNS)), colour, second, jitter, turn, float(rng.uniform(0.16, 0.26))
    )


def render(sprites: Sprites, scene: Scene, side: int = SIDE) -> np.ndarray:
    """The picture of a scene: uint8 [side, side, 3]."""
    canvas = Image.fromarray(draw_background(scene.background, side))
    for item in scene.items:
        size = max(8, round(item.size * side))
        sprite = sprites.all[item.sprite].image.resize(
            (size, size), Image.Resampling.BICUBIC, reducing_gap=2.0
        )
        corner = (round(item.centre[0] * side - size / 2), round(item.centre[1] * side - size / 2))
        canvas.paste(sprite, corner, sprite)
    return np.asarray(canvas)


def draw_background(background: Background, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]."""
    base = np.clip(np.array(COLOURS[background.colour]) + background.jitter, 0, 255).astype(
        np.float32
    )
    if background.kind == "plain":
        return np.broadcast_to(base.astype(np.uint8), (side, side, 3)).copy()
    other = np.array(COLOURS[background.second], dtype=np.float32)
    share = _mixture(background, side)[..., None]
    if background.kind != "gradient":
        # Patterns stay close to the main colour, so that it remains the colour one would name.
        share = share * 0.45
    mixed: np.ndarray = (base * (1 - share) + other * share).round().astype(np.uint8)
    return mixed


def _mixture(background: Background, side: int) -> np.ndarray:
    """How much of the second colour each pixel has: float32 [side, side] from 0 to 1."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    along = x * np.cos(background.turn) + y * np.sin(background.turn)
    # Edges of patterns are about a pixel soft.
    soft = 0.5 * side * background.period
    share: np.ndarray
    if background.kind == "gradient":
        share = along
    elif background.kind == "stripes":
        share = np.sin(2 * np.pi * along / background.period) * soft / 2 + 0.5
    elif background.kind == "checks":
        share = (
            np.sin(np.pi * x / background.period) * np.sin(np.pi * y / background.period) * soft
            + 0.5
        )
    else:
        dx, dy = (x / background.period) % 1 - 0.5, (y / background.period) % 1 - 0.5
        share = (0.26 - np.sqrt(dx * dx + dy * dy)) * side * background.period + 0.5
    return share.clip(0, 1)

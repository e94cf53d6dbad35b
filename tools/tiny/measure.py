"""Figures of a packed model: restored scenes, captions found, and what it draws when told.

python -m tools.tiny.measure --data ../shared/data --model src/konomi/builtin/tiny --grid grid.png
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tools.tiny import pack
from tools.tiny.captions import with_article
from tools.tiny.clip import Towers, retrieval, tokenize
from tools.tiny.dataset import FAVOURITES, SCENE_WEIGHTS
from tools.tiny.scenes import (
    COLOURS,
    STYLES,
    Scene,
    Sprites,
    describe,
    index_sprites,
    load_sprites,
    read_zip,
    render,
)
from tools.tiny.vae import psnr, to_tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.models.load import load_base

FIRST_SEED = 950_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.measure", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("src/konomi/builtin/tiny"))
    parser.add_argument("--captions", type=int, default=64, help="pictures drawn for the last figures")
    parser.add_argument("--favourites", action="store_true", help="draw favourite concepts only")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--grid", type=Path, help="where to put the pictures drawn")
    options = parser.parse_args()
    sprites = load_sprites(options.data)
    novel = index_sprites([s for s in read_zip(options.data / "emoji-novel.zip") if s.style in STYLES])
    vae = load_base(options.model).vae.float()
    scenes = [render(novel, describe(novel, FIRST_SEED + n, pair_share=0.0)) for n in range(40)]
    print(f"VAE, scenes with novel concepts: {psnr(vae, scenes):.2f} dB")
    towers = pack.load_towers(options.model)
    tokenizer = CLIPTokenizer.from_pretrained(options.model / "tokenizer")
    print(f"CLIP, own scene among 64: {retrieval(towers, sprites, tokenizer, first_seed=FIRST_SEED):.1%}")
    chosen = load_sprites(options.data, SCENE_WEIGHTS)
    told = scenes_to_draw(chosen, options.captions, favourites=options.favourites)
    pictures = draw(options.model, chosen, told, options.guidance)
    print(f"concept among the CLIP's first five of all: {named(towers, tokenizer, chosen, told, pictures):.1%}")
    print(f"background colour as named: {coloured(told, pictures):.1%}")
    if options.grid:
        save_grid(pictures, options.grid)


def scenes_to_draw(sprites: Sprites, count: int, *, favourites: bool) -> list[Scene]:
    """Single drawings on plain backgrounds."""
    found: list[Scene] = []
    seed = FIRST_SEED + 1000
    while len(found) < count:
        scene = describe(sprites, seed, pair_share=0.0)
        known = sprites.all[scene.items[0].sprite].name in FAVOURITES
        if scene.background.kind == "plain" and (known or not favourites):
            found.append(scene)
        seed += 1
    return found


def prompt(sprites: Sprites, scene: Scene) -> str:
    name = with_article(sprites.all[scene.items[0].sprite].name)
    return f"{name}, {scene.style} style, on a {scene.background.colour} background"


def draw(model: Path, sprites: Sprites, scenes: list[Scene], guidance: float) -> list[np.ndarray]:
    """One picture a scene; 25 steps of DPM++ 2M."""
    base = load_base(model)
    requests = [
        Request(prompt=prompt(sprites, scene), seed=n, steps=25, guidance=guidance) for n, scene in enumerate(scenes)
    ]
    started = time.monotonic()
    pictures = [np.asarray(picture.image) for picture in generate(base, requests, batch=16)]
    print(f"{(time.monotonic() - started) / len(pictures):.2f} s a picture, drawn 16 at a time")
    return pictures


@torch.no_grad()
def named(
    towers: Towers, tokenizer: CLIPTokenizer, sprites: Sprites, scenes: list[Scene], pictures: list[np.ndarray]
) -> float:
    """Share of pictures whose concept is among the five nearest names."""
    texts = [f"{with_article(name)}, {{}} style" for name in sprites.names]
    by_style = {}
    for style in STYLES:
        words = [text.format(style) for text in texts]
        by_style[style] = F.normalize(towers.text(input_ids=tokenize(tokenizer, words, "cpu")).text_embeds, dim=1)
    hits = []
    for scene, picture in zip(scenes, pictures):
        image = F.normalize(towers.image(pixel_values=to_tensor([picture], "cpu")).image_embeds, dim=1)
        best = (by_style[scene.style] @ image[0]).topk(5).indices.tolist()
        hits.append(sprites.all[scene.items[0].sprite].name in {sprites.names[n] for n in best})
    return float(np.mean(hits))


def coloured(scenes: list[Scene], pictures: list[np.ndarray]) -> float:
    """Share of pictures whose border is nearest to the named colour: the median of the outermost three pixels."""
    table = np.array(list(COLOURS.values()))
    hits = []
    for scene, picture in zip(scenes, pictures):
        inside = np.zeros(picture.shape[:2], dtype=bool)
        inside[3:-3, 3:-3] = True
        border = np.median(picture[~inside], axis=0)
        nearest = list(COLOURS)[int(np.square(table - border).sum(1).argmin())]
        hits.append(nearest == scene.background.colour)
    return float(np.mean(hits))


def save_grid(pictures: list[np.ndarray], path: Path, columns: int = 8) -> None:
    side = pictures[0].shape[0]
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * side, rows * side), "white")
    for n, picture in enumerate(pictures):
        grid.paste(Image.fromarray(picture), ((n % columns) * side, (n // columns) * side))
    grid.save(path)


if __name__ == "__main__":
    main()

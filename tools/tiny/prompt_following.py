"""Does a model draw what it is asked for? Scenes to ask for, pictures drawn, and what the CLIP and
the border tell.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tools.tiny.captions import with_article
from tools.tiny.clip import ClipModel, tokenize
from tools.tiny.scenes import COLOURS, STYLES, Scene, Sprites, describe
from tools.tiny.style import image_features
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.models.base import BaseModel

FIRST_SEED = 950_001_000
BATCH = 16
TOP = 5


def single_scenes(
    sprites: Sprites, count: int, *, only: frozenset[str] = frozenset()
) -> list[Scene]:
    """Single drawings on plain backgrounds."""
    return _collect(_single(sprites, only), count)


def pair_scenes(sprites: Sprites, count: int) -> list[Scene]:
    """Two drawings side by side on plain backgrounds."""
    wanted = (scene for scene in _described(sprites, pair_share=1.0) if scene.relation == "next to")
    return _collect((scene for scene in wanted if scene.background.kind == "plain"), count)


def _collect(scenes: Iterator[Scene], count: int) -> list[Scene]:
    return [scene for scene, _ in zip(scenes, range(count), strict=False)]


def _single(sprites: Sprites, only: frozenset[str]) -> Iterator[Scene]:
    for scene in _described(sprites, pair_share=0.0):
        fits = not only or sprites.all[scene.items[0].sprite].name in only
        if fits and scene.background.kind == "plain":
            yield scene


def _described(sprites: Sprites, *, pair_share: float) -> Iterator[Scene]:
    seed = FIRST_SEED
    while True:
        yield describe(sprites, seed, pair_share=pair_share)
        seed += 1


def prompt_for(sprites: Sprites, scene: Scene) -> str:
    names = [with_article(sprites.all[item.sprite].name) for item in scene.items]
    return (
        f"{f' {scene.relation} '.join(names)}, {scene.style} style, on a "
        f"{scene.background.colour} background"
    )


def draw(
    base: BaseModel, prompts: Sequence[str], *, guidance: float, first_seed: int = 0
) -> list[np.ndarray]:
    """One picture a prompt, uint8 [H, W, 3]; 25 steps of DPM++ 2M."""
    requests = [
        Request(prompt=prompt, seed=first_seed + n, steps=25, guidance=guidance)
        for n, prompt in enumerate(prompts)
    ]
    return [np.asarray(picture.image) for picture in generate(base, requests, batch=BATCH)]


class NameFinder:
    """Tells which of all concept names a picture is nearest to, by the model's own CLIP."""

    def __init__(
        self,
        clip_model: ClipModel,
        tokenizer: CLIPTokenizer,
        sprites: Sprites,
        names: Sequence[str] | None = None,
    ) -> None:
        """`sprites` are those of the scenes asked about; `names` all that are to choose from, by
        default theirs.
        """
        self.clip_model, self.sprites = clip_model, sprites
        self.names = tuple(names or sprites.names)
        self.names_ND: dict[str, Tensor] = {}
        for style in STYLES:
            texts = [f"{with_article(name)}, {style} style" for name in self.names]
            with torch.no_grad():
                found = clip_model.text(input_ids=tokenize(tokenizer, texts, "cpu")).text_embeds
            self.names_ND[style] = F.normalize(found, dim=1)

    def first_names(self, pictures: Sequence[np.ndarray], styles: Sequence[str]) -> list[set[str]]:
        """The TOP nearest names of each picture."""
        found = image_features(self.clip_model, pictures)
        nearest = [
            (self.names_ND[style] @ row).topk(TOP).indices.tolist()
            for row, style in zip(found, styles)
        ]
        return [{self.names[n] for n in row} for row in nearest]

    def named(self, scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> float:
        """Share of pictures of single drawings whose concept is among the first names."""
        first = self.first_names(pictures, [scene.style for scene in scenes])
        hits = [
            self.sprites.all[s.items[0].sprite].name in names
            for s, names in zip(scenes, first, strict=True)
        ]
        return float(np.mean(hits))

    def both_named(self, scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> float:
        """Share of pictures of pairs with the one found in the left half and the other in the
        right half.
        """
        hits = np.ones(len(scenes), dtype=bool)
        for side in (0, 1):
            halves = [half(picture, side) for picture in pictures]
            first = self.first_names(halves, [scene.style for scene in scenes])
            wanted = [self.sprites.all[scene.items[side].sprite].name for scene in scenes]
            hits &= np.array([name in names for name, names in zip(wanted, first, strict=True)])
        return float(hits.mean())


def half(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle square of the left (0) or right (1) half, enlarged to the whole: uint8 [S,
    S, 3].
    """
    whole = picture.shape[0]
    width = whole // 2
    box = (side * width, width // 2, (side + 1) * width, width // 2 + width)
    return np.asarray(
        Image.fromarray(picture).crop(box).resize((whole, whole), Image.Resampling.BICUBIC)
    )


def coloured(scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> float:
    """Share of pictures whose border is nearest to the named colour: the median of the outermost
    three pixels.
    """
    table = np.array(list(COLOURS.values()))
    hits = []
    for scene, picture in zip(scenes, pictures, strict=True):
        inside = np.zeros(picture.shape[:2], dtype=bool)
        inside[3:-3, 3:-3] = True
        border = np.median(picture[~inside], axis=0)
        nearest = list(COLOURS)[int(np.square(table - border).sum(1).argmin())]
        hits.append(nearest == scene.background.colour)
    return float(np.mean(hits))


def save_grid(pictures: Sequence[np.ndarray], path: Path, columns: int = 8) -> None:
    """PNG of pictures in rows."""
    side = pictures[0].shape[0]
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * side, rows * side), "white")
    for n, picture in enumerate(pictures):
        grid.paste(Image.fromarray(picture), ((n % columns) * side, (n // columns) * side))
    grid.save(path)

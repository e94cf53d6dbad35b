"""Which of the three styles is a picture drawn in? The nearest of the real drawings of the same
concept tells.

A classifier that ignores what is drawn is no judge here: on scenes of real drawings, small
networks over pixels and linear ones over the CLIP's features were right in 53 to 60 %. Styles show
in how each thing is drawn.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tools.tiny.clip import ClipModel
from tools.tiny.scenes import STYLES, Scene, Sprites, describe, render
from tools.tiny.vae import to_tensor
from torch import Tensor

HELD_OUT_SEED = 985_000_000
VIEWS = 3
"""Scenes of each real drawing that a picture is compared with, a little moved and resized."""


class StyleJudge:
    """Knows the real drawings of every concept; compares image features of the CLIP."""

    def __init__(self, clip_model: ClipModel, sprites: Sprites) -> None:
        self.clip_model, self.sprites = clip_model, sprites
        self.drawings: dict[str, dict[str, int]] = defaultdict(dict)
        for number, sprite in enumerate(sprites.all):
            self.drawings[sprite.name][sprite.style] = number

    def can_judge(self, scene: Scene) -> bool:
        """Whether all three styles draw the concept."""
        return len(self.drawings[self.sprites.all[scene.items[0].sprite].name]) == len(STYLES)

    def style_of(self, picture: np.ndarray, scene: Scene) -> str:
        """The style whose drawing of the scene's concept the picture (uint8 [H, W, 3]) is nearest
        to.
        """
        known = self.drawings[self.sprites.all[scene.items[0].sprite].name]
        views = [
            self._view(scene, known[style], number) for style in STYLES for number in range(VIEWS)
        ]
        found = image_features(self.clip_model, [picture, *views])
        cosines = (found[1:] @ found[0]).view(len(STYLES), VIEWS).mean(1)
        return STYLES[int(cosines.argmax())]

    def share_right(self, pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> float:
        """Of pictures drawn for scenes, those in the style that was asked for."""
        told = [
            self.style_of(picture, scene) == scene.style
            for picture, scene in zip(pictures, scenes, strict=True)
            if self.can_judge(scene)
        ]
        return float(np.mean(told))

    def accuracy_on_real(self, count: int = 200) -> float:
        """On new scenes of the real drawings themselves: what no generated picture can beat by
        much.
        """
        scenes = [describe(self.sprites, HELD_OUT_SEED + n, pair_share=0.0) for n in range(count)]
        return self.share_right([render(self.sprites, scene) for scene in scenes], scenes)

    def _view(self, scene: Scene, sprite: int, number: int) -> np.ndarray:
        rng = np.random.default_rng((scene.seed, number, 0x57E))
        item = scene.items[0]
        x, y = item.centre
        moved = (x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03))
        seen = replace(item, sprite=sprite, centre=moved, size=item.size * rng.uniform(0.92, 1.08))
        return render(self.sprites, replace(scene, items=(seen,)))


@torch.no_grad()
def image_features(clip_model: ClipModel, pictures: Sequence[np.ndarray]) -> Tensor:
    """Unit image features [N, D] of the CLIP."""
    parts = [
        clip_model.image(to_tensor(list(pictures[k : k + 64]), "cpu"))
        for k in range(0, len(pictures), 64)
    ]
    return torch.cat(parts)

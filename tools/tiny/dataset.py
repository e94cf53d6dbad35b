"""Stage 4: scenes as a folder that konomi trains on: PNG files and `metadata.jsonl`."""

import json
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tools.tiny.captions import caption
from tools.tiny.scenes import SIDE, Scene, Sprites, describe, render

FIRST_SEED = 400_000_000

SCENE_WEIGHTS = {0: 0.7, 1: 0.06, 2: 0.02, 3: 1.6, 4: 1.5, 5: 0.35, 6: 0.7, 7: 0.4, 8: 0.05}
"""Emoji groups as the denoiser meets them. What it can learn in an hour of one core is few drawings well or all badly:
animals, food, faces and activities come most."""
PAIR_SHARE = 0.1

NEAR = 1.25
"""At 96 pixels single drawings in the middle come larger, so that their strokes are as wide as at 128."""


def nearer(scene: Scene) -> Scene:
    item = scene.items[0]
    if len(scene.items) > 1 or item.place:
        return scene
    return replace(scene, items=(replace(item, size=min(0.98, item.size * NEAR)),))


def write_dataset(sprites: Sprites, folder: Path, *, count: int, side: int, first_seed: int = FIRST_SEED) -> Path:
    """Render what is missing of `count` scenes. Returns the folder of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        scene = describe(sprites, first_seed + number, pair_share=PAIR_SHARE)
        if side < SIDE:
            scene = nearer(scene)
        path = folder / f"scene-{number:06d}.png"
        rows.append({"file_name": path.name, "text": caption(sprites, scene, 0)})
        if not path.exists():
            part = path.with_suffix(".part")
            Image.fromarray(render(sprites, scene, side)).save(part, format="PNG", compress_level=1)
            part.replace(path)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder

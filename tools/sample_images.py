"""Plain images with captions, to train on where only numbers matter."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw


def paint(folder: Path, sizes: Sequence[tuple[int, int]] = ((64, 64),) * 4) -> Path:
    """Write one of each size into a new folder."""
    folder.mkdir(parents=True)
    for index, size in enumerate(sizes):
        image = Image.new("RGB", size, (40 * index, 90, 200 - 30 * index))
        ImageDraw.Draw(image).ellipse((10, 10, 30 + 5 * index, 40), fill=(250, 20 * index, 60))
        image.save(folder / f"{index}.png")
        caption = f"a photo of sks dog, number {index}"
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return folder

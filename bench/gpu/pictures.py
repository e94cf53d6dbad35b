"""Four plain pictures with captions, to train on where only numbers matter."""

from pathlib import Path

from PIL import Image, ImageDraw


def paint(folder: Path, side: int = 64) -> Path:
    """Write them into a new folder."""
    folder.mkdir(parents=True)
    for index in range(4):
        image = Image.new("RGB", (side, side), (50 * index, 90, 200 - 40 * index))
        ImageDraw.Draw(image).ellipse(
            (side // 6, side // 6, side // 2 + 5 * index, side - 8), fill=(250, 40 * index, 60)
        )
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(
            f"a photo of sks dog, number {index}", encoding="utf-8"
        )
    return folder

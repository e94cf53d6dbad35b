"""The mascot of the sample pictures: a small round creature with leaf ears, drawn by code in five
scenes.

Coordinates are fractions of the side; everything is drawn at four times the size and reduced.
Run as `python -m tools.tiny.mascot FOLDER`.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 256
OVER = 4
BODY, BODY_DARK, BELLY = "#8fdcc0", "#6cc7a8", "#f7fbe9"
LEAF, LEAF_DARK = "#4fae4b", "#3a8c3c"
INK, CHEEK, FOOT = "#2e3a46", "#ff9fa8", "#f4a24c"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Pose:
    """How the creature stands."""

    centre: Point = (0.5, 0.56)
    radius: float = 0.27
    tilt: float = 0.0
    """Degrees, anticlockwise."""
    eyes: str = "open"
    """`open`, `happy` or `asleep`."""
    mouth: str = "smile"
    """`smile`, `laugh` or `small`."""
    arms: tuple[float, float] = (-35.0, 215.0)
    """Directions of right and left arm in degrees; 0 is right, 90 up."""
    ears: tuple[float, float] = (62.0, 118.0)
    feet: bool = True


class Canvas:
    """A square drawing with coordinates from 0 to 1."""

    def __init__(self, fill: str | None = None) -> None:
        self.side = SIDE * OVER
        self.image = Image.new("RGBA", (self.side, self.side), fill or (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.image)

    def disc(self, centre: Point, rx: float, ry: float, fill: str) -> None:
        (x, y), s = centre, self.side
        self.pen.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=fill)

    def shape(self, points: list[Point], fill: str) -> None:
        self.pen.polygon([(x * self.side, y * self.side) for x, y in points], fill=fill)

    def line(self, points: list[Point], width: float, fill: str) -> None:
        """Round joints and ends."""
        s = self.side
        self.pen.line(
            [(x * s, y * s) for x, y in points], fill=fill, width=round(width * s), joint="curve"
        )
        for point in (points[0], points[-1]):
            self.disc(point, width / 2, width / 2, fill)


def along(centre: Point, degrees: float, distance: float) -> Point:
    angle = math.radians(degrees)
    return centre[0] + distance * math.cos(angle), centre[1] - distance * math.sin(angle)


def arc(
    centre: Point, rx: float, ry: float, start: float, end: float, steps: int = 24
) -> list[Point]:
    angles = [math.radians(start + (end - start) * k / steps) for k in range(steps + 1)]
    return [(centre[0] + rx * math.cos(a), centre[1] - ry * math.sin(a)) for a in angles]


def leaf(canvas: Canvas, root: Point, degrees: float, length: float, width: float) -> None:
    """An ear: a leaf with its vein."""
    angle = math.radians(degrees)
    ahead, aside = (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))

    def place(t: float, side: float) -> Point:
        bulge = side * width * math.sin(math.pi * t**0.8) * (1 - 0.25 * t)
        return (
            root[0] + ahead[0] * length * t + aside[0] * bulge,
            root[1] + ahead[1] * length * t + aside[1] * bulge,
        )

    steps = [k / 30 for k in range(31)]
    canvas.shape([place(t, 1) for t in steps] + [place(t, -1) for t in reversed(steps)], LEAF)
    canvas.shape([place(t, 1) for t in steps] + [place(t, 0) for t in reversed(steps)], LEAF_DARK)
    canvas.line([place(0.02, 0), place(0.85, 0)], length * 0.035, "#d9f2a8")


def creature(pose: Pose) -> Image.Image:
    """The creature alone, RGBA [SIDE * OVER] squared."""
    canvas = Canvas()
    (x, y), r = pose.centre, pose.radius
    for degrees in pose.ears:
        leaf(
            canvas,
            along((x, y), degrees, r * 0.86),
            degrees + (8 if degrees < 90 else -8) * -1,
            r * 0.95,
            r * 0.26,
        )
    if pose.feet:
        for side in (-1, 1):
            canvas.disc((x + side * r * 0.42, y + r * 0.93), r * 0.27, r * 0.16, FOOT)
    for degrees in pose.arms:
        shoulder = (x, y + r * 0.1)
        canvas.line(
            [along(shoulder, degrees, r * 0.75), along(shoulder, degrees, r * 1.22)],
            r * 0.26,
            BODY_DARK,
        )
    canvas.disc((x, y), r * 1.02, r * 0.96, BODY_DARK)
    canvas.disc((x - r * 0.035, y - r * 0.05), r * 0.96, r * 0.89, BODY)
    canvas.disc((x, y + r * 0.38), r * 0.62, r * 0.5, BELLY)
    _face(canvas, pose)
    if pose.tilt:
        middle = (pose.centre[0] * canvas.side, pose.centre[1] * canvas.side)
        return canvas.image.rotate(pose.tilt, Image.Resampling.BICUBIC, center=middle)
    return canvas.image


def _face(canvas: Canvas, pose: Pose) -> None:
    (x, y), r = pose.centre, pose.radius
    for side in (-1, 1):
        eye = (x + side * r * 0.4, y - r * 0.2)
        canvas.disc((x + side * r * 0.62, y + r * 0.06), r * 0.14, r * 0.1, CHEEK)
        if pose.eyes == "open":
            canvas.disc(eye, r * 0.14, r * 0.18, INK)
            canvas.disc((eye[0] + r * 0.04, eye[1] - r * 0.07), r * 0.055, r * 0.055, "#ffffff")
            canvas.disc((eye[0] - r * 0.04, eye[1] + r * 0.07), r * 0.028, r * 0.028, "#ffffff")
        else:
            up = pose.eyes == "happy"
            canvas.line(
                arc(eye, r * 0.15, r * 0.12, *((10, 170) if up else (190, 350))), r * 0.065, INK
            )
    mouth = (x, y + r * 0.02)
    if pose.mouth == "laugh":
        canvas.shape(arc((x, mouth[1] - r * 0.02), r * 0.22, r * 0.27, 180, 360), "#8c3b46")
        canvas.disc((x, mouth[1] + r * 0.17), r * 0.12, r * 0.075, "#f47f8a")
    elif pose.mouth == "smile":
        canvas.line(arc(mouth, r * 0.16, r * 0.13, 195, 345), r * 0.06, INK)
    else:
        canvas.disc((x, mouth[1] + r * 0.06), r * 0.05, r * 0.06, INK)


def shadow(canvas: Canvas, centre: Point, rx: float, colour: str) -> None:
    canvas.disc(centre, rx, rx * 0.16, colour)


def star(canvas: Canvas, centre: Point, size: float, fill: str) -> None:
    points = [along(centre, 90 + 36 * k, size if k % 2 == 0 else size * 0.45) for k in range(10)]
    canvas.shape(points, fill)


def standing() -> Image.Image:
    canvas = Canvas("#8ccef0")
    shadow(canvas, (0.5, 0.86), 0.25, "#74b6da")
    canvas.image.alpha_composite(creature(Pose(centre=(0.5, 0.59), radius=0.265)))
    return canvas.image


def jumping() -> Image.Image:
    canvas = Canvas("#fada3e")
    for k, colour in enumerate(
        ("#e8505b", "#4a7fe0", "#ffffff", "#58a64a", "#b060c8", "#f68a1e") * 3
    ):
        where = ((0.09 + 0.37 * k) % 1.0, (0.07 + 0.618 * k * 0.83) % 1.0)
        if math.dist(where, (0.5, 0.52)) > 0.36:
            canvas.disc(where, 0.021, 0.021, colour)
    shadow(canvas, (0.5, 0.93), 0.17, "#dcb92a")
    pose = Pose(
        centre=(0.5, 0.53),
        radius=0.25,
        eyes="happy",
        mouth="laugh",
        arms=(16, 164),
        ears=(56, 124),
        tilt=8,
    )
    canvas.image.alpha_composite(creature(pose))
    return canvas.image


def sleeping() -> Image.Image:
    canvas = Canvas("#27346e")
    canvas.disc((0.8, 0.19), 0.11, 0.11, "#fbeeb0")
    canvas.disc((0.755, 0.165), 0.095, 0.095, "#27346e")
    for x, y, size in (
        (0.14, 0.16, 0.035),
        (0.37, 0.09, 0.022),
        (0.56, 0.2, 0.018),
        (0.91, 0.45, 0.024),
        (0.07, 0.43, 0.02),
    ):
        star(canvas, (x, y), size, "#fbeeb0")
    canvas.disc((0.5, 0.92), 0.44, 0.13, "#8f78c8")
    canvas.disc((0.5, 0.9), 0.4, 0.1, "#a892dc")
    pose = Pose(
        centre=(0.48, 0.66),
        radius=0.25,
        eyes="asleep",
        mouth="small",
        arms=(-30, 210),
        ears=(24, 156),
        feet=False,
    )
    canvas.image.alpha_composite(creature(pose))
    return canvas.image


def with_heart() -> Image.Image:
    canvas = Canvas("#f8a8c8")
    shadow(canvas, (0.47, 0.88), 0.24, "#e08fb2")
    pose = Pose(centre=(0.47, 0.61), radius=0.26, eyes="happy", arms=(-8, 205), tilt=-6)
    canvas.image.alpha_composite(creature(pose))
    x, y, r = 0.76, 0.6, 0.075
    for side in (-1, 1):
        canvas.disc((x + side * r * 0.62, y - r * 0.3), r * 0.75, r * 0.75, "#dc2f45")
    canvas.shape(
        [(x - r * 1.28, y - r * 0.02), (x + r * 1.28, y - r * 0.02), (x, y + r * 1.5)], "#dc2f45"
    )
    canvas.disc((x - r * 0.75, y - r * 0.5), r * 0.2, r * 0.14, "#ff8c98")
    return canvas.image


def on_grass() -> Image.Image:
    canvas = Canvas("#f4e6c4")
    canvas.disc((0.17, 0.19), 0.105, 0.105, "#f9b93a")
    canvas.disc((0.3, 1.13), 0.75, 0.42, "#6cba5a")
    canvas.disc((0.85, 1.2), 0.6, 0.42, "#58a64a")
    for where in ((0.1, 0.86), (0.2, 0.95), (0.86, 0.9), (0.93, 0.98)):
        for k in range(5):
            canvas.disc(along(where, 72 * k + 18, 0.021), 0.015, 0.015, "#ffffff")
        canvas.disc(where, 0.013, 0.013, "#fada3e")
    pose = Pose(
        centre=(0.54, 0.58), radius=0.25, mouth="laugh", arms=(14, 215), ears=(66, 124), tilt=4
    )
    canvas.image.alpha_composite(creature(pose))
    return canvas.image


SCENES: tuple[tuple[str, str, Callable[[], Image.Image]], ...] = (
    ("mascot-1", "sks creature, standing, light blue background", standing),
    ("mascot-2", "sks creature, jumping, yellow background with dots", jumping),
    ("mascot-3", "sks creature, sleeping at night, moon and stars, blue background", sleeping),
    ("mascot-4", "sks creature with a red heart, pink background", with_heart),
    ("mascot-5", "sks creature waving on green grass, sun, cream background", on_grass),
)


def write_pictures(folder: Path) -> list[Path]:
    """PNG and caption of each scene."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, caption, draw in SCENES:
        picture = draw().convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        paths.append(folder / f"{name}.png")
        picture.save(paths[-1], optimize=True)
        (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
    return paths


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1]))

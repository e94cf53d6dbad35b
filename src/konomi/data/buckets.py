"""Which size each image is trained at. A bucket is (width, height) in pixels; a batch never mixes
buckets.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from konomi.config.sections import BucketConfig
from konomi.data.manifest import Excluded, Record
from konomi.errors import RecipeError

Bucket = tuple[int, int]
"""Width, height in pixels."""

GRID = 8
"""Pixels: every bucket side is a multiple of it, and of what the base asks for."""


def grid_for(size_step: int) -> int:
    """Pixels that bucket sides are multiples of, for a base whose pictures are multiples of
    `size_step`.
    """
    return math.lcm(GRID, size_step)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The images that train, each with its bucket, and those left out."""

    records: tuple[Record, ...]
    buckets: tuple[Bucket, ...]
    """One per record."""
    excluded: tuple[Excluded, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """A `BucketConfig` with its zeros replaced by what they stand for at a resolution."""

    resolution: Bucket
    step: int
    min_side: int
    max_side: int

    @property
    def area(self) -> int:
        return self.resolution[0] * self.resolution[1]


def parse_size(text: str) -> Bucket:
    """`512` -> (512, 512); `768x512` -> (768, 512). Raises RecipeError for anything else."""
    found = re.fullmatch(r"([0-9]+)(?:x([0-9]+))?", text)
    if found is None:
        raise RecipeError(f"size is {text!r}; it looks like 512 or 768x512.")
    return int(found[1]), int(found[2] or found[1])


def limits(resolution: Bucket, config: BucketConfig, grid: int = GRID) -> Limits:
    """Step and sides in pixels; `min_side` rounded up and `max_side` down to the step. Raises
    RecipeError.
    """
    short, long = min(resolution), max(resolution)
    step = config.step or max(grid, min(64, short // 8) // grid * grid)
    if step % grid:
        near = max(grid, round(step / grid) * grid)
        raise RecipeError(
            f"data.buckets.step is {step}; it must be a multiple of {grid}. Use {near}."
        )
    min_side = -(-(config.min_side or short // 2) // step) * step
    max_side = (config.max_side or max(2 * short, long)) // step * step
    if min_side > max_side:
        raise RecipeError(
            f"data.buckets.min_side is {config.min_side or short // 2} and max_side "
            f"{config.max_side or 2 * short}: no multiple of {step} (data.buckets.step) lies "
            "between them. Lower min_side or the step."
        )
    return Limits(resolution, step, max(min_side, step), max_side)


def novelai_buckets(
    max_area: Bucket = (768, 512), *, min_side: int = 256, max_side: int = 1024, step: int = 64
) -> tuple[Bucket, ...]:
    """NovelAI's list ("Improvements on Stable Diffusion", 2022): for each width the tallest bucket
    within the area.

    Then the same transposed, and the square of the shorter side. 19 sizes for 768x512.
    """
    square = min(max_area) // step * step
    return _tallest(max_area[0] * max_area[1], min_side, max_side, step, square)


def area_buckets(
    resolution: Bucket, *, min_side: int, max_side: int, step: int
) -> tuple[Bucket, ...]:
    """sd-scripts' list: as NovelAI's, with the resolution as area and the square of (nearly) that
    area.
    """
    area = resolution[0] * resolution[1]
    return _tallest(area, min_side, max_side, step, math.isqrt(area) // step * step)


def _tallest(area: int, min_side: int, max_side: int, step: int, square: int) -> tuple[Bucket, ...]:
    sizes = {(square, square)} if square else set()
    for width in range(min_side, max_side + 1, step):
        height = min(area // width // step * step, max_side)
        if height >= min_side:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def buckets_for(resolution: Bucket, config: BucketConfig, grid: int = GRID) -> tuple[Bucket, ...]:
    """The list of buckets a configuration offers (own sizes of small images come on top). Raises
    RecipeError.
    """
    if config.kind == "fixed":
        if resolution[0] % grid or resolution[1] % grid:
            below = "x".join(str(max(grid, side // grid * grid)) for side in resolution)
            raise RecipeError(
                f"data.resolution is {resolution[0]}x{resolution[1]}; for data.buckets.kind = "
                f"'fixed' both sides must be multiples of {grid}. Use {below}."
            )
        return (resolution,)
    bounds = limits(resolution, config, grid)
    make = novelai_buckets if config.kind == "novelai" else area_buckets
    sizes = make(resolution, min_side=bounds.min_side, max_side=bounds.max_side, step=bounds.step)
    if not sizes:
        raise RecipeError(
            f"data.buckets: no bucket with sides from {bounds.min_side} to {bounds.max_side} fits "
            f"the area of {resolution[0]}x{resolution[1]}. Lower data.buckets.min_side."
        )
    return sizes


def assign(
    records: Sequence[Record], resolution: Bucket, config: BucketConfig, grid: int = GRID
) -> Assignment:
    """Give each image the bucket whose width / height is nearest to its own; an exact size wins.

    An image whose ratio is `max_ratio_error` or more away from every bucket is excluded with the
    reason. Of buckets equally near, the one with the larger area is taken. `grid`: pixels that
    every side is a multiple of. Raises RecipeError for settings that allow no bucket.
    """
    sizes = buckets_for(resolution, config, grid)
    own_sizes = config.kind == "area" and not config.upscale
    bounds = limits(resolution, config, grid) if own_sizes else None
    known: dict[Bucket, Bucket | str] = {}
    kept: list[Record] = []
    buckets: list[Bucket] = []
    excluded: list[Excluded] = []
    for record in records:
        size = (record.width, record.height)
        if size not in known:
            known[size] = _choose(size, sizes, bounds, config.max_ratio_error)
        choice = known[size]
        if isinstance(choice, str):
            excluded.append(Excluded(name=record.name, reason=choice))
        else:
            kept.append(record)
            buckets.append(choice)
    return Assignment(tuple(kept), tuple(buckets), tuple(excluded))


def _choose(
    size: Bucket, sizes: tuple[Bucket, ...], own: Limits | None, max_error: float
) -> Bucket | str:
    """The bucket, or why there is none."""
    width, height = size
    if width < 1 or height < 1:
        return f"has no pixels ({width}x{height})"
    ratio = width / height
    if own is not None:
        bucket = _own_size(size, own)
        if min(bucket) == 0:
            return (
                f"is {width}x{height}: too small or too narrow for buckets in steps of "
                f"{own.step} pixels"
            )
    elif size in sizes:
        return size
    else:
        bucket = min(sizes, key=lambda b: (abs(b[0] / b[1] - ratio), -b[0] * b[1]))
    error = abs(bucket[0] / bucket[1] - ratio)
    if error >= max_error:
        return (
            f"is {width}x{height}: its width / height of {ratio:.2f} is {error:.2f} away from the "
            f"nearest bucket {bucket[0]}x{bucket[1]} (data.buckets.max_ratio_error is "
            f"{max_error:g})"
        )
    return bucket


def _own_size(size: Bucket, own: Limits) -> Bucket:
    """sd-scripts' `bucket_no_upscale`: the image's own size, shrunk to the area if larger, cut
    down to the step.
    """
    width, height = size
    if width * height <= own.area:
        return width // own.step * own.step, height // own.step * own.step
    ratio = width / height
    # One side is rounded to the step and the other follows the ratio; whichever side distorts the
    # ratio less leads.
    wide = _rounded(math.sqrt(own.area * ratio), own.step)
    high = _rounded(math.sqrt(own.area / ratio), own.step)
    if min(wide, high) == 0:
        return 0, 0
    from_width = (wide, _rounded(wide / ratio, own.step))
    from_height = (_rounded(high * ratio, own.step), high)
    if from_width[1] == 0:
        return from_width
    error_width = abs(from_width[0] / from_width[1] - ratio)
    error_height = abs(from_height[0] / from_height[1] - ratio)
    if error_width < error_height:
        return wide, int(wide / ratio + 0.5) // own.step * own.step
    return int(high * ratio + 0.5) // own.step * own.step, high


def _rounded(value: float, step: int) -> int:
    """To whole pixels, then down to the step."""
    return int(value + 0.5) // step * step

"""Which crop of an image is trained on: where the part beyond the bucket is taken off, and whether
it is mirrored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from konomi.config.sections import ImageConfig
from konomi.data.buckets import GRID, Bucket
from konomi.data.images import crop_to_bucket, mask_to_latent_grid, read_image
from konomi.data.manifest import Record
from konomi.diffusion.random import stable_hash


@dataclass(frozen=True, slots=True)
class Crop:
    """One crop. `x` and `y` from 0 (left, top) to 1 (right, bottom) place the bucket on the scaled
    image.
    """

    x: float = 0.5
    y: float = 0.5
    flip: bool = False


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image cropped to its bucket."""

    pixels: Tensor
    """Float32 [3, H, W] from -1 to 1."""
    sizes: tuple[int, int, int, int, int, int]
    """Original height, width, crop top, left, target height, width, in pixels."""
    mask: Tensor | None = None
    """Float32 [1, h, w] on the latent grid, where the image has one."""


LoadImage = Callable[[Record, Bucket, Crop], PreparedImage]
"""Reads an image and crops it. Raises DataError naming the file."""


def image_loader(images: ImageConfig, latent_factor: int = GRID) -> LoadImage:
    """The `LoadImage` of a configuration, which reads image files. `latent_factor`: pixels per
    latent cell, for masks.
    """

    def load_image(record: Record, bucket: Bucket, crop: Crop) -> PreparedImage:
        image = read_image(
            record.locator,
            alpha=images.alpha,
            background=images.background,
            mask=record.mask,
            attention=record.attention,
        )
        cropped = crop_to_bucket(image, bucket, crop_position=(crop.x, crop.y), flip=crop.flip)
        pixels = (
            torch.from_numpy(cropped.pixels)
            .permute(2, 0, 1)
            .contiguous()
            .float()
            .div_(127.5)
            .sub_(1.0)
        )
        mask = (
            None
            if cropped.mask is None
            else torch.from_numpy(mask_to_latent_grid(cropped.mask, latent_factor))[None]
        )
        return PreparedImage(pixels, cropped.sizes, mask)

    return load_image


def num_crops(images: ImageConfig) -> int:
    """Crops kept per image in the cache: random crops times mirror images."""
    return (images.crops if images.crop == "random" else 1) * (2 if images.flip else 1)


def cached_crop(images: ImageConfig, content: str, index: int) -> Crop:
    """The index-th crop of an image: a function of its content, not of the seed, so that runs share
    the cache.
    """
    flip = images.flip and index % 2 == 1
    if images.crop == "center":
        return Crop(flip=flip)
    crop = index // 2 if images.flip else index
    return Crop(_fraction("x", content, crop), _fraction("y", content, crop), flip)


def fresh_crop(images: ImageConfig, key: int) -> Crop:
    """A crop drawn anew, a function of the key, where nothing is cached."""
    flip = images.flip and stable_hash("flip", key) & 1 == 1
    if images.crop == "center":
        return Crop(flip=flip)
    return Crop(_fraction("x", key), _fraction("y", key), flip)


def _fraction(*parts: object) -> float:
    """From 0 to 1, in steps of 2^-16: short and exact in a cache key."""
    return (stable_hash("crop", *parts) & 0xFFFF) / 0xFFFF

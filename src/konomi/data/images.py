"""Images as training sees them: read upright, scaled to cover a bucket, cropped. H, W pixels; h, w
latent cells.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from konomi.data.containers import read_bytes
from konomi.data.manifest import Excluded, Manifest, Record
from konomi.data.pixels import BadImageError, decode, decode_attention, decode_mask, size_of
from konomi.errors import DataError, printable

Pixels = NDArray[np.uint8]
"""[H, W, 3], RGB."""
Mask = NDArray[np.float32]
"""[H, W], from 0: how much each pixel counts in the loss, 1 as much as without a mask."""

MAX_LISTED = 20
MAX_ATTENTION = 5.0
"""What white means in an attention mask."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image upright, without alpha."""

    pixels: Pixels
    mask: Mask | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Cropped(NamedTuple):
    """What of an image fills its bucket."""

    pixels: Pixels
    mask: Mask | None
    sizes: tuple[int, int, int, int, int, int]
    """Original height, width; crop top, left (after scaling, and after mirroring); target height,
    width."""


def read_image(
    locator: str,
    *,
    alpha: Literal["background", "mask"] = "background",
    background: str = "#ffffff",
    mask: str = "",
    attention: str = "",
) -> LoadedImage:
    """Decode an image completely.

    Args:
        locator: a file path, or a member of a zip or tar.
        alpha: lay transparent pixels on `background`, or also return opacity as the mask.
        background: "#rrggbb".
        mask: locator of a separate mask image (white trains), or empty.
        attention: locator of a separate attention mask (see `attention_weights`), or empty. Masks
            multiply.

    Raises:
        DataError: unreadable, damaged, cut off, too large; or the mask does not belong to the
        image.
    """
    rgb, opacity = _decoded(locator, background)
    weights: Mask | None = None
    if opacity is not None and alpha == "mask":
        weights = _fraction(opacity)
    if mask:
        separate = _fraction(_read_mask(mask, decode_mask, rgb.size, locator))
        weights = separate if weights is None else weights * separate
    if attention:
        separate = attention_weights(_read_mask(attention, decode_attention, rgb.size, locator))
        weights = separate if weights is None else weights * separate
    return LoadedImage(np.asarray(rgb), weights)


def read_mask(locator: str, size: tuple[int, int], owner: str) -> Image.Image:
    """A mask image upright, as greyscale "L" of its picture's size.

    Args:
        size: (width, height) of the picture.
        owner: the picture's name, for the message.

    Raises:
        DataError: unreadable, or of another shape than the picture.
    """
    return _read_mask(locator, decode_mask, size, owner)


def read_size(locator: str) -> tuple[int, int]:
    """(width, height) of an image as it will look, EXIF turning included, without decoding its
    pixels.

    Raises:
        DataError: not a readable image, or too large.
    """
    try:
        return size_of(read_bytes(locator))
    except BadImageError as error:
        raise DataError(f"{printable(locator)}: {error}") from error


def _decoded(locator: str, background: str) -> tuple[Image.Image, Image.Image | None]:
    try:
        return decode(read_bytes(locator), background=background)
    except BadImageError as error:
        raise DataError(f"{printable(locator)}: {error}") from error


def _fraction(grey: Image.Image) -> Mask:
    weights: Mask = np.divide(np.asarray(grey), np.float32(255), dtype=np.float32)
    return weights


def attention_weights(grey: Image.Image) -> Mask:
    """DreamArtist's scale of greys: 0 to 127 is a weight of 0 to 1, 128 to 255 one of 1 to 5."""
    levels = np.asarray(grey).astype(np.float32)
    weights: Mask = np.where(
        levels <= 127, levels / 127, 1 + (levels - 128) * ((MAX_ATTENTION - 1) / 127)
    )
    return weights.astype(np.float32)


def _read_mask(
    mask: str, decode_grey: Callable[[bytes], Image.Image], size: tuple[int, int], locator: str
) -> Image.Image:
    try:
        grey = decode_grey(read_bytes(mask))
    except BadImageError as error:
        raise DataError(f"{printable(mask)}: {error}") from error
    if grey.size != size:
        # A mask drawn at another resolution is fine; one of another shape belongs to another
        # picture.
        if abs(grey.width * size[1] - grey.height * size[0]) > 0.02 * grey.width * size[1]:
            raise DataError(
                f"{printable(mask)}: a mask of {grey.width}x{grey.height} for "
                f"{printable(locator)}, which is {size[0]}x{size[1]}. Make the mask from the same "
                "picture."
            )
        grey = grey.resize(size, Image.Resampling.BILINEAR)
    return grey


def crop_to_bucket(
    image: LoadedImage,
    bucket: tuple[int, int],
    *,
    crop_position: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
) -> Cropped:
    """Scale an image until it just covers the bucket, cut off the rest, mirror it if asked.

    Lanczos when it shrinks, bicubic when it grows; no resampling when it already fits.

    Args:
        bucket: (width, height) in pixels.
        crop_position: (x, y), each 0 to 1: 0 keeps the left/top edge, 1 the right/bottom edge.
        flip: mirror left and right, after cropping: the same part of the picture either way.
    """
    width, height = image.size
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))
    left = round((scaled[0] - bucket[0]) * crop_position[0])
    top = round((scaled[1] - bucket[1]) * crop_position[1])
    pixels, mask = image.pixels, image.mask
    if scaled == (width, height):
        window = (slice(top, top + bucket[1]), slice(left, left + bucket[0]))
        pixels, mask = pixels[window], None if mask is None else mask[window]
    else:
        # Only the part that stays is resampled; the filter still sees the pixels beyond its edge.
        step_x, step_y = width / scaled[0], height / scaled[1]
        right, bottom = (
            min((left + bucket[0]) * step_x, width),
            min((top + bucket[1]) * step_y, height),
        )
        box = (left * step_x, top * step_y, right, bottom)
        filter_ = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        pixels = np.asarray(Image.fromarray(pixels).resize(bucket, filter_, box=box))
        if mask is not None:
            # Lanczos and bicubic overshoot; weights must stay within their range.
            mask = np.asarray(
                Image.fromarray(mask).resize(bucket, Image.Resampling.BILINEAR, box=box)
            )
    if flip:
        pixels, mask = pixels[:, ::-1], None if mask is None else mask[:, ::-1]
        left = scaled[0] - left - bucket[0]
    # Copies: Pillow's arrays are read-only, which torch.from_numpy does not like.
    pixels, mask = np.array(pixels, order="C"), None if mask is None else np.array(mask, order="C")
    return Cropped(pixels, mask, (height, width, top, left, bucket[1], bucket[0]))


def mask_to_latent_grid(mask: Mask, factor: int = 8) -> Mask:
    """[H, W] -> [h, w]: the mean weight of the pixels under each latent cell."""
    height, width = mask.shape
    assert height % factor == 0 and width % factor == 0, (
        "buckets are multiples of the latent factor"
    )
    cells = mask.reshape(height // factor, factor, width // factor, factor)
    mean: Mask = cells.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)
    return mean


class VerifiedSet(Protocol):
    """Which images were decoded before; `konomi.data.scan_cache.VerifiedImages`."""

    def __contains__(self, record: object) -> bool: ...
    def add(self, record: Record) -> None: ...
    def save(self) -> None: ...


def unreadable(
    records: Iterable[Record], *, workers: int = 1, verified: VerifiedSet | None = None
) -> tuple[Excluded, ...]:
    """Decode every image (and mask) completely, but for those that `verified` knows; those that
    fail, with the reason, in order.
    """
    found: list[Excluded] = []
    pending = (
        iter(records)
        if verified is None
        else (record for record in records if record not in verified)
    )
    with ThreadPoolExecutor(max(1, workers)) as pool:
        # In portions: a manifest of 100,000 must not become 100,000 waiting tasks.
        while portion := list(islice(pending, 64 * max(1, workers))):
            for record, bad in zip(portion, pool.map(_try_reading, portion)):
                if bad is not None:
                    found.append(bad)
                elif verified is not None:
                    verified.add(record)
    if verified is not None:
        verified.save()
    return tuple(found)


def _try_reading(record: Record) -> Excluded | None:
    try:
        read_image(record.locator, mask=record.mask, attention=record.attention)
    except DataError as error:
        return Excluded(name=record.name, reason=str(error))
    return None


def verify(manifest: Manifest, *, workers: int = 1, verified: VerifiedSet | None = None) -> None:
    """Decode every image once, before any model loads, but for those that `verified` knows.

    Raises:
        DataError: names all files that cannot be read, with the reasons.
    """
    bad = unreadable(manifest.records, workers=workers, verified=verified)
    if not bad:
        return
    shown = "; ".join(excluded.reason for excluded in bad[:MAX_LISTED])
    more = f"; and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    raise DataError(f"{len(bad)} images cannot be read. Replace or remove them: {shown}{more}")

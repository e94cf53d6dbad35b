"""The picture that `generate` starts from, and what of it is drawn anew."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from konomi.data.images import read_image, read_mask
from konomi.errors import RecipeError

DEFAULT_STRENGTH = 0.7
"""Of a picture to start from."""


def start_from(
    init: str | Path | None, mask: str | Path | None
) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture to start from, and what of it is drawn anew."""
    if init is None:
        if mask is not None:
            raise RecipeError(
                "--mask is given without --init. Give the picture that the mask belongs to."
            )
        return None, None
    start = read_picture(init)
    return start, None if mask is None else _mask(mask, start.size, str(init))


def strength_of(
    given: float | None, start: Image.Image | None, tell: Callable[[str], object]
) -> float:
    """How much of the picture is drawn anew; a strength without a picture is told."""
    if start is not None:
        return DEFAULT_STRENGTH if given is None else given
    if given is not None:
        tell("--strength has no effect without --init.")
    return 1.0


def _mask(path: str | Path, size: tuple[int, int], init: str) -> Image.Image:
    """As a person sees it. Raises RecipeError where nothing in it is white."""
    try:
        mask = read_mask(str(path), size, init)
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such image.") from error
    if mask.getextrema()[1] < 128:  # type: ignore[operator]
        raise RecipeError(
            f"{path}: nothing in this mask is white, so nothing would be drawn. Paint white what "
            "to redraw."
        )
    return mask


def read_picture(path: str | Path) -> Image.Image:
    """A picture as a person sees it. Raises RecipeError where there is none."""
    try:
        return Image.fromarray(read_image(str(path)).pixels)
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise RecipeError(f"{path}: no such image.") from error

"""The picture that `generate` starts from, and what of it is drawn anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from konomi.data.images import read_image, read_mask
from konomi.errors import RecipeError

DEFAULT_STRENGTH = 0.7
"""Of a picture to start from."""


def start_from(
    init: str | Path | None,
    mask: str | Path | None,
    strength: float | None,
    tell: Callable[[str], object],
) -> dict[str, Any]:
    """`init`, `mask` and `strength` of a request: the picture to start from, what of it is drawn
    anew, and how much. A strength without a picture is told. Raises RecipeError.
    """
    if init is None:
        if mask is not None:
            raise RecipeError(
                "--mask is given without --init. Give the picture that the mask belongs to."
            )
        if strength is not None:
            tell("--strength has no effect without --init.")
        return {"init": None, "mask": None, "strength": 1.0}
    start = read_picture(init)
    return {
        "init": start,
        "mask": None if mask is None else _mask(mask, start.size, str(init)),
        "strength": DEFAULT_STRENGTH if strength is None else strength,
    }


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

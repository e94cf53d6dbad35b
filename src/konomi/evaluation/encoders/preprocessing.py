"""How a network wants its pictures, as its `preprocessor_config.json` says it.

The steps and their order are those of transformers' image processors, computed with Pillow and
numpy alone: the same numbers whether torchvision is installed or not. Shapes: H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konomi.errors import ModelError
from konomi.models.tensor_files import read_json

CLIP_STATISTICS = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_LARGEST = 4096
"""Of a side that a config may ask for, in pixels."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to a picture before a network sees it, in this order: resized, the middle cut
    out, scaled to 0 .. 1, normalised."""

    size: tuple[int, int] | None
    """Height and width to resize to, whatever the shape was."""
    shortest: int | None
    """Or the length of the shorter side; the shape stays."""
    crop: tuple[int, int] | None
    """Height and width of the middle that is cut out."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling = Image.Resampling.BICUBIC
    factor: float = 1 / 255
    rounded: bool = True
    """Whether the resized picture has whole numbers, as Pillow's has. DINOv3 was trained on
    pictures that were scaled first and resized then."""

    def __call__(self, image: Image.Image) -> Tensor:
        """[3, H, W], float32."""
        values_HWC = self._resized(image.convert("RGB"))
        if self.crop is not None:
            values_HWC = _middle(values_HWC, *self.crop)
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        normal_HWC = (values_HWC * np.float32(self.factor) - mean) / std
        return torch.from_numpy(normal_HWC.transpose(2, 0, 1).copy())

    def _resized(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[H, W, 3] from 0 to 255."""
        if self.size is not None:
            height, width = self.size
        elif self.shortest is not None:
            short, long = sorted(image.size)
            longer = int(self.shortest * long / short)
            wide = image.width > image.height
            height, width = (self.shortest, longer) if wide else (longer, self.shortest)
        else:
            return np.asarray(image, dtype=np.float32)
        if self.rounded:
            return np.asarray(image.resize((width, height), self.resample), dtype=np.float32)
        channels = [
            np.asarray(channel.convert("F").resize((width, height), self.resample))
            for channel in image.split()
        ]
        return np.stack(channels, axis=2)


def _middle(
    values_HWC: np.ndarray[Any, np.dtype[np.float32]], height: int, width: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Cut out, with black around it where the picture is smaller."""
    short = (max(0, height - values_HWC.shape[0]), max(0, width - values_HWC.shape[1]))
    if any(short):
        edges = [(-(-missing // 2), missing // 2) for missing in short]
        values_HWC = np.pad(values_HWC, (*edges, (0, 0)))
    top = (values_HWC.shape[0] - height) // 2
    left = (values_HWC.shape[1] - width) // 2
    return values_HWC[top : top + height, left : left + width]


def read_preprocessing(folder: Path, usual: Preprocessing) -> Preprocessing:
    """What the folder's `preprocessor_config.json` says; what it does not say is as `usual`.

    Raises ModelError naming the setting that is none.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return usual
    settings = read_json(path)
    try:
        return _parsed(settings, usual)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: its sizes, colours or filter cannot be read ({error}). Take the file that "
            "belongs to the model."
        ) from error


def _parsed(settings: Mapping[str, Any], usual: Preprocessing) -> Preprocessing:
    size, shortest, crop = usual.size, usual.shortest, usual.crop
    if isinstance(wanted := settings.get("size"), Mapping) and "height" in wanted:
        size, shortest = _height_width(wanted), None
    elif wanted is not None:
        edge = wanted["shortest_edge"] if isinstance(wanted, Mapping) else wanted
        # A bare number is the shorter side where the middle is cut out, a square elsewhere.
        square = not isinstance(wanted, Mapping) and usual.shortest is None
        size, shortest = (_height_width(edge), None) if square else (None, _side(edge))
    if not settings.get("do_resize", True):
        size = shortest = None
    if settings.get("crop_size") is not None:
        crop = _height_width(settings["crop_size"])
    if settings.get("do_center_crop") is False or (
        usual.crop is None and not settings.get("do_center_crop")
    ):
        crop = None
    plain = settings.get("do_normalize") is False
    return Preprocessing(
        size,
        shortest,
        crop,
        (0.0,) * 3 if plain else _three(settings.get("image_mean") or usual.mean),
        (1.0,) * 3 if plain else _three(settings.get("image_std") or usual.std),
        Image.Resampling(settings.get("resample", usual.resample)),
        float(settings.get("rescale_factor", usual.factor))
        if settings.get("do_rescale", True)
        else 1.0,
        usual.rounded,
    )


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return _side(size["height"]), _side(size["width"])
    return _side(size), _side(size)


def _side(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise ValueError(f"a side of {value!r:.40}")
    return value


def _three(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} colours")
    return numbers

"""`FILE:0.8` and `FILE:unet=0.8:text=0.5`: an adapter's file and how much of it."""

import re
from dataclasses import dataclass
from pathlib import Path

NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
"""A weight as it is written, also in prompts; no two ways to read it, so that no match goes back
and forth."""
_NAMED_WEIGHTS = re.compile(rf"(.+?)((?::(?:unet|denoiser|te|text)=(?:{NUMBER}))+)", re.DOTALL)
_ONE_WEIGHT = re.compile(rf"(.+):({NUMBER})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WeightedFile:
    """What is written, taken apart."""

    path: Path
    denoiser: float = 1.0
    text: float = 1.0
    weights: str = ""
    """`:0.8`, as it is written behind the path."""


def weighted_file(written: str, folder: Path = Path()) -> WeightedFile:
    """A part that is not named keeps 1. A file whose name ends like a weight is taken whole if it
    lies in `folder`, where relative paths start.
    """
    if _exists(folder / written):
        return WeightedFile(Path(written))
    if named := _NAMED_WEIGHTS.fullmatch(written):
        weights = dict(pair.split("=") for pair in named[2][1:].split(":"))
        denoiser = float(weights.get("unet", weights.get("denoiser", 1.0)))
        text = float(weights.get("text", weights.get("te", 1.0)))
        return WeightedFile(Path(named[1]), denoiser, text, named[2])
    if one := _ONE_WEIGHT.fullmatch(written):
        return WeightedFile(Path(one[1]), float(one[2]), float(one[2]), f":{one[2]}")
    return WeightedFile(Path(written))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

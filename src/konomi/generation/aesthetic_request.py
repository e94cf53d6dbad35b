"""What is asked of Aesthetic Gradients: the embeddings with their weights, as one direction for
each text encoder.

Shapes: P width of the space that CLIP shares between pictures and texts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from konomi.config.weighted_file import NUMBER
from konomi.errors import RecipeError
from konomi.formats.aesthetic import read_aesthetic

_WEIGHTED = re.compile(rf"(.+):({NUMBER})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WeightedFile:
    """An aesthetic embedding and how much of it."""

    path: Path
    weight: float = 1.0


def parse_weighted(argument: str, flag: str = "--aesthetic") -> WeightedFile:
    """`FILE` or `FILE:WEIGHT`; a file whose name ends like a weight is taken whole if it exists.

    Raises RecipeError where nothing is there, or the weight is no number that can be used.
    """
    path, weight = Path(argument), 1.0
    if not path.exists() and (found := _WEIGHTED.fullmatch(argument)):
        path, weight = Path(found[1]), float(found[2])
    if not path.exists():
        raise RecipeError(f"{flag} {argument}: there is no {path}. Write FILE or FILE:0.5.")
    if not isfinite(weight):
        raise RecipeError(f"{flag} {argument[:80]}: the weight is too large a number.")
    return WeightedFile(path, weight)


def directions(files: Sequence[WeightedFile]) -> dict[int, Tensor]:
    """P -> unit vector [P], float32: the weighted sum of the embeddings of that width, each of
    length 1 before.

    Raises FileFormatError for a file that is none, RecipeError where they cancel out.
    """
    sums: dict[int, Tensor] = {}
    for file in files:
        vector_P = functional.normalize(read_aesthetic(file.path).vector_P, dim=0)
        width = len(vector_P)
        sums[width] = sums.get(width, torch.zeros(width)) + file.weight * vector_P
    for total_P in sums.values():
        if float(total_P.norm()) < 1e-6:
            raise RecipeError(
                "--aesthetic: the weighted embeddings cancel out, so there is no direction. Choose "
                "other weights."
            )
    return {width: functional.normalize(total_P, dim=0) for width, total_P in sums.items()}


def blend(files: Sequence[WeightedFile]) -> float:
    """How much of the tuned text states is taken: the sum of the weights without their signs, at
    most 1."""
    return min(1.0, sum(abs(file.weight) for file in files))

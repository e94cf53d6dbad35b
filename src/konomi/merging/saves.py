"""The average of what a run saved, as if a moving average (EMA) had been kept: how long it
remembers is chosen afterwards (Karras et al. 2024, "Analyzing and Improving the Training Dynamics
of Diffusion Models", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths
from konomi.errors import RecipeError
from konomi.merging.adapters import sum_adapters
from konomi.merging.formulas import Knobs
from konomi.merging.methods import MergeMethod

WIDEST = 1 / math.sqrt(12)
"""Of a profile that weighs all steps alike; it excludes nothing that helps."""


def exponent(width: float) -> float:
    """The gamma of the profile t^gamma whose standard deviation is `width` times the length of the
    training (their equation 126): width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    low, high = 0.0, 1.0
    while _width(high) > width:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _width(middle) > width else (low, middle)
    return (low + high) / 2


def _width(gamma: float) -> float:
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def save_weights(steps: Sequence[int], width: float) -> tuple[float, ...]:
    """How much each save counts; the sum is 1.

    steps: of the saves, rising; the last one is the end of the average.
    width: of the profile, its standard deviation in shares of that length: 0.05 follows the last
        steps, 0.25 nearly all.

    Every step of the training is stood for by the save that is nearest to it. Raises RecipeError
    for a width that no profile has.
    """
    if not 0 < width < WIDEST:
        raise RecipeError(
            f"--ema is {width:g}; it is a share of the training above 0 and below {WIDEST:.3f}, "
            "where all steps count alike."
        )
    power, end = exponent(width) + 1, steps[-1]
    bounds = [0.0, *((a + b) / 2 for a, b in pairwise(steps)), float(end)]
    mass = [(bound / end) ** power for bound in bounds]
    return tuple(b - a for a, b in pairwise(mass))


def average_adapters(saves: Sequence[Adapter], weights: Sequence[float], name: str) -> Adapter:
    """The mean of what they do; metadata are the last one's.

    Exact, with as many ranks as all have: a mean of factors would not be a mean of products.
    """
    parts = [(_without_words(save), Strengths(w, w)) for save, w in zip(saves, weights)]
    total = sum_adapters(parts[::-1], name)
    words: dict[str, dict[str, Tensor]] = {}
    for word, vectors in saves[-1].embeddings.items():
        words[word] = {}
        for part, last in vectors.items():
            found = [
                (save.embeddings[word][part].to(torch.float64), weight)
                for save, weight in zip(saves, weights, strict=True)
                if word in save.embeddings and save.embeddings[word][part].shape == last.shape
            ]
            whole = sum(weight for _, weight in found)
            words[word][part] = sum(v * (w / whole) for v, w in found).to(last.dtype)  # type: ignore[union-attr]
    metadata = {key: text for key, text in total.metadata.items() if key != "konomi.merged_from"}
    return Adapter(
        layers=total.layers,
        embeddings=words,
        metadata=metadata,
        family=total.family,
        name=name,
    )


def _without_words(adapter: Adapter) -> Adapter:
    return replace(adapter, embeddings={})


def average_method(weights: Sequence[float]) -> MergeMethod:
    """The same of whole models, as a way to merge them."""

    def saves(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
        total = models[0] * weights[0]
        for model, weight in zip(models[1:], weights[1:], strict=True):
            total.add_(model, alpha=weight)
        return total

    return MergeMethod(saves, (1, None), "SAVES", True)

"""Matrices of low rank: sums of products, and how ranks are shared out.

Shapes: O output, I input (of a convolution, its channels times its kernel), R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from konomi.adapters.kinds import LowRank


def added(updates: Sequence[tuple[LowRank, float]]) -> LowRank:
    """sum of w dW, exactly: ranks side by side. The weight is on one factor alone: on both, 0.5
    would act as 0.25.
    """
    kernel = max((update.down.dim() for update, _ in updates), default=2)
    ups, downs = [], []
    for update, weight in updates:
        rank = update.rank
        up = update.up.flatten(1).double() * (weight * update.alpha / rank)
        ups.append(up.to(torch.promote_types(update.up.dtype, torch.float32)))
        down = update.down
        downs.append(down[:, :, None, None] if down.dim() < kernel else down)
    dtype = torch.promote_types(ups[0].dtype, torch.float32)
    up, down = torch.cat([u.to(dtype) for u in ups], 1), torch.cat([d.to(dtype) for d in downs])
    biases = [(update.bias, weight) for update, weight in updates if update.bias is not None]
    bias = (
        sum((bias * weight for bias, weight in biases[1:]), biases[0][0] * biases[0][1])
        if biases
        else None
    )
    ones = [1] * (kernel - 2)
    return LowRank(down, up.reshape(*up.shape, *ones), float(len(down)), bias=bias)


@dataclass(frozen=True, slots=True)
class RankChoice:
    """How the rank of each layer is chosen: one of the three is given."""

    rank: int | None = None
    energy: float | None = None
    """Share of each layer's squared norm."""
    max_bytes: int | None = None
    """Of the whole file: directions are kept in the order of what they hold for their size."""


def shared_out(spectra: Sequence[tuple[Tensor, int]], max_bytes: int, itemsize: int) -> list[int]:
    """Ranks of layers whose values [R] and numbers per direction (O + I) are given, so that all
    factors fit into `max_bytes` and hold as much as possible. 0 for a layer that gets none.
    """
    offers = [
        (float(value) ** 2 / cost, layer, cost)
        for layer, (values, cost) in enumerate(spectra)
        for value in values
        if float(value) > 0
    ]
    ranks, left = [0] * len(spectra), max_bytes
    for _, layer, cost in sorted(offers, reverse=True):
        if cost * itemsize <= left:
            ranks[layer] += 1
            left -= cost * itemsize
    return ranks

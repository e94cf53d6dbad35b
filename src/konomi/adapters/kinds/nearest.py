"""The update of a kind that comes nearest to a change of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from konomi.adapters.kinds.low_rank import LowRank


def nearest_low_rank(change: Tensor, rank: int) -> LowRank:
    """Of a change [O, ...], by its singular directions (Eckart-Young)."""
    # Later than the kinds, of which it makes one.
    from konomi.adapters.spectrum import spectrum, truncated

    return truncated(spectrum(change, rank), rank, change.shape, torch.float32)

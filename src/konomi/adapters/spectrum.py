"""Singular directions of a change of weights, and the best update of a low rank.

Shapes: O output, I input (of a convolution, its channels times its kernel), R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from konomi.adapters.kinds import LowRank

_OVERSAMPLE = 10
_ROUNDS = 4
_SMALL = 256
"""Up to this side all singular values are computed whatever is asked for."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The leading singular directions of a change, in float64."""

    u_OR: Tensor
    values_R: Tensor
    v_RI: Tensor
    norm: float
    """Frobenius norm of the whole change."""

    def rank_of(self, energy: float) -> int:
        """The fewest directions that hold this share of the squared norm; at least one."""
        squares = self.values_R.square().cumsum(0)
        reached = squares >= energy * self.norm**2 * (1 - 1e-12)
        return int(reached.to(torch.int8).argmax()) + 1 if bool(reached.any()) else len(squares)


def spectrum(change: Tensor, rank: int | None = None) -> Spectrum:
    """Of a change [O, ...].

    rank: as many directions are enough; None computes all.

    The best approximation of that rank (Eckart-Young) is exact for a small matrix. For a large one
    and a small rank it is found by subspace iteration (Halko et al. 2011, algorithm 4.4), whose
    error is that of the best approximation to many digits; it is exact where the change has no
    higher rank.
    """
    flat_OI = change.flatten(1)
    side = min(flat_OI.shape)
    norm = float(torch.linalg.vector_norm(flat_OI, dtype=torch.float64))
    if rank is not None and side > _SMALL and rank + _OVERSAMPLE < side // 4:
        return _leading(flat_OI, rank, norm)
    exact = flat_OI.double()
    if side <= _SMALL:
        u, values, v = torch.linalg.svd(exact, full_matrices=False)
        return Spectrum(u, values, v, norm)
    # The smaller Gram matrix in float64 has the same directions, to 1e-8 of the largest value.
    wide = exact.shape[0] <= exact.shape[1]
    squares, basis = torch.linalg.eigh(exact @ exact.T if wide else exact.T @ exact)
    values, basis = squares.flip(0).clamp(min=0).sqrt(), basis.flip(1)
    safe = values.clamp(min=1e-300)
    if wide:
        return Spectrum(basis, values, basis.T @ exact / safe[:, None], norm)
    return Spectrum(exact @ basis / safe, values, basis.T.contiguous(), norm)


def _leading(flat_OI: Tensor, rank: int, norm: float) -> Spectrum:
    generator = torch.Generator().manual_seed(0)
    flat = flat_OI.float()
    probe = torch.randn(flat.shape[1], rank + _OVERSAMPLE, generator=generator)
    basis = torch.linalg.qr(flat @ probe).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(flat.T @ basis).Q
        basis = torch.linalg.qr(flat @ basis).Q
    u, values, v = torch.linalg.svd((basis.T @ flat).double(), full_matrices=False)
    return Spectrum((basis.double() @ u)[:, :rank], values[:rank], v[:rank], norm)


def truncated(found: Spectrum, rank: int, shape: Sequence[int], dtype: torch.dtype) -> LowRank:
    """The update of that rank, of a weight of this shape; both factors equally large, so that
    half precision holds them.
    """
    root = found.values_R[:rank].sqrt()
    up = (found.u_OR[:, :rank] * root).to(dtype)
    down = (found.v_RI[:rank] * root[:, None]).to(dtype)
    ones = [1] * (len(shape) - 2)
    return LowRank(
        down.reshape(rank, *shape[1:]).contiguous(),
        up.reshape(shape[0], rank, *ones).contiguous(),
        float(rank),
    )


def error_of(change: Tensor, update: LowRank) -> float:
    """|change - update| / |change|, of the update as it is written."""
    left = change.flatten(1).float() - (
        update.up.flatten(1).float() @ update.down.flatten(1).float()
    ).mul_(update.scale)
    whole = float(torch.linalg.vector_norm(change, dtype=torch.float64))
    missed = float(torch.linalg.vector_norm(left, dtype=torch.float64))
    return missed / whole if whole else 0.0


def spectrum_of_product(update: LowRank) -> Spectrum:
    """Of a product of thin factors, exactly, without building it."""
    up, down = update.up.flatten(1).double(), update.down.flatten(1).double()
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T * update.scale, full_matrices=False)
    norm = math.sqrt(float(values.square().sum()))
    return Spectrum(q_up @ u, values, v @ q_down.T, norm)

"""The Kronecker product nearest to a change of weights (Van Loan & Pitsianis 1993): the best
approximation of rank 1 of the same numbers in another order.

Shapes: O = P S outputs, I = Q T inputs, K kernel; w1 is [P, Q], w2 [S, T, K, K].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from konomi.adapters.kinds.kronecker import Kronecker
from konomi.adapters.spectrum import spectrum


def nearest_kronecker(
    change: Tensor, factor: int, dtype: torch.dtype
) -> tuple[Kronecker, float, Tensor]:
    """Of a change [O, I, ...]: the update, the share of the change that it misses, as written, and
    the singular values of which it keeps the first.

    factor: of the outputs and of the inputs that become w1, the largest divisor up to it.
    """
    out, width, *kernel = change.shape
    p, q = _divisor(out, factor), _divisor(width, factor)
    parted = change.reshape(p, out // p, q, width // q, -1)
    ordered = parted.permute(0, 2, 1, 3, 4).reshape(p * q, -1)
    found = spectrum(ordered)
    root = found.values_R[0].sqrt()
    w1 = (found.u_OR[:, 0] * root).reshape(p, q).to(dtype).contiguous()
    w2 = (found.v_RI[0] * root).reshape(out // p, width // q, *kernel).to(dtype).contiguous()
    left = ordered - w1.float().reshape(-1, 1) * w2.float().reshape(1, -1)
    missed = float(torch.linalg.vector_norm(left, dtype=torch.float64))
    return Kronecker(w1=w1, w2=w2), missed / found.norm if found.norm else 0.0, found.values_R


def _divisor(width: int, limit: int) -> int:
    return next(d for d in range(min(limit, math.isqrt(width)), 0, -1) if width % d == 0)

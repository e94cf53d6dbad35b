"""`rotate`: one model turned towards another, layer by layer.

Shapes: N neurons, I values of each; R directions that both layers have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from konomi.merging.formulas import Knobs

_TINY = 1e-6
"""Singular values below this share of the largest are no directions of their own."""


def rotate(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A with its neurons turned towards B's: (A - mean A) Q^alpha + (1 - alpha) mean A +
    alpha mean B, with Q the orthogonal matrix that brings A's centred neurons nearest to B's (the
    orthogonal Procrustes problem, Schönemann 1966; sd-mecha, `rotate`).

    A neuron is a row of a matrix, or a kernel of a convolution. The lengths of the neurons and the
    angles between them stay A's. Vectors stay A's. At alpha = 1 Q may mirror; between, it is a
    rotation, and Q^alpha the same turn by a part of its angles.
    """
    a, b = models
    if a.ndim < 2 or torch.equal(a, b):
        return a
    kernel = a.ndim == 4 and a.shape[2:].numel() > 1
    # In float64, because directions in which the models hardly agree are found badly.
    a_NI, b_NI = ((x.flatten(0, 1).flatten(1) if kernel else x.flatten(1)).double() for x in (a, b))
    mean_a, mean_b = a_NI.mean(0), b_NI.mean(0)
    a_NI, b_NI = a_NI - mean_a, b_NI - mean_b
    from_IR, to_IR = _directions(a_NI, b_NI)
    if knobs.alpha == 1:
        turned = a_NI @ from_IR @ to_IR.T
    else:
        turned = _turned(a_NI, from_IR, to_IR, knobs.alpha)
    return (turned + torch.lerp(mean_a, mean_b, knobs.alpha)).view_as(a).to(a.dtype)


def _directions(a_NI: Tensor, b_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions, those of A and what Q makes of each: the singular vectors of
    A^T B."""
    if a_NI.shape[0] >= a_NI.shape[1]:
        u, values, v = torch.linalg.svd(a_NI.T @ b_NI, full_matrices=False)
        v = v.T
    else:
        # A^T B is wider than it has directions: the same from the triangular factors.
        a_q, a_r = torch.linalg.qr(a_NI.T)
        b_q, b_r = torch.linalg.qr(b_NI.T)
        u, values, v = torch.linalg.svd(a_r @ b_r.T, full_matrices=False)
        u, v = a_q @ u, b_q @ v.T
    count = int((values > _TINY * values[0]).sum())
    return u[:, :count], v[:, :count]


def _turned(a_NI: Tensor, from_IR: Tensor, to_IR: Tensor, alpha: float) -> Tensor:
    """A Q^alpha, with a Q that leaves alone what neither model has, and moves what one of them
    has not as little as it can."""
    width, count = from_IR.shape
    if 2 * count < width:
        basis = torch.linalg.qr(torch.cat([from_IR, to_IR], 1)).Q
    else:
        basis = torch.eye(width, dtype=torch.float64)
    start, end = basis.T @ from_IR, basis.T @ to_IR
    if rest := len(start) - count:
        free_start, free_end = (
            torch.linalg.qr(side, mode="complete").Q[:, -rest:] for side in (start, end)
        )
        u, _, v = torch.linalg.svd(free_start.T @ free_end)
        start, end = torch.cat([start, free_start @ u], 1), torch.cat([end, free_end @ v.T], 1)
        last = count - 1
    else:
        last = -1
    q = start @ end.T
    if torch.linalg.slogdet(q).sign < 0:
        # A reflection has no real powers. What it costs least to leave out is the weakest
        # direction (Kabsch 1976).
        end[:, last] = -end[:, last]
        q = start @ end.T
    inside = a_NI @ basis
    result: Tensor = a_NI + (inside @ _power(q, alpha) - inside) @ basis.T
    return result


def _power(q_II: Tensor, exponent: float) -> Tensor:
    """A rotation by a part of its angles.

    In a plane in which Q turns by t, its symmetric half S is cos(t) and its antisymmetric half K is
    sin(t) times a quarter turn; so Q^x = cos(x t) + K sin(x t) / sin(t), a function of S.
    """
    cosines, vectors = torch.linalg.eigh((q_II + q_II.T) / 2)
    angles = torch.arccos(cosines.clamp(-1, 1))
    sines = torch.sin(angles)
    stretch = torch.where(sines.abs() > 1e-9, torch.sin(exponent * angles) / sines, exponent)
    turned = (vectors * stretch) @ vectors.T @ ((q_II - q_II.T) / 2)
    result: Tensor = (vectors * torch.cos(exponent * angles)) @ vectors.T + turned
    return result

"""Where the two factors of a LoRA start.

| start | A, B, with W = U S V^T or W = Q R |
|---|---|
| zero (Hu et al. 2021) | A Kaiming-uniform, B = 0 |
| pissa (Meng et al. 2024, "PiSSA") | scale B A = U_r S_r V_r^T, half of S on either side |
| olora (Buyukakyuz 2024, "OLoRA") | A = R_r, B = Q_r |

The last two learn along the directions that W itself has. They do not start from nothing, so that
B A - B_0 A_0 is what is learned; W stays as it is.

Shapes: O output, I input, K kernel, R rank.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Init = Literal["zero", "pissa", "olora"]
_EXACT = 256
"""Width up to which all singular vectors are computed; of larger weights only the leading ones."""
_MORE, _ROUNDS = 16, 8
"""Directions beside the R wanted ones, and passes over the weight (Halko et al. 2011, section
4.5)."""


def first_factors(
    init: Init, weight: Tensor, rank: int, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A [R, I(, K, K)] and B [O, R(, 1, 1)] in float32, on the CPU for `zero`, else beside the
    weight [O, I(, K, K)].
    """
    outputs, *inner = weight.shape
    ones = [1] * (len(inner) - 1)
    if init == "zero":
        bound = 1.0 / math.sqrt(math.prod(inner))
        down = torch.empty(rank, *inner).uniform_(-bound, bound, generator=generator)
        return down, torch.zeros(outputs, rank, *ones)
    flat = weight.detach().flatten(1).float()
    if init == "olora":
        q, r = torch.linalg.qr(flat)
        down, up = r[:rank], q[:, :rank]
    else:
        u, s, vh = leading_directions(flat, rank, generator)
        root = (s / scale).sqrt()
        down, up = root[:, None] * vh, u * root
    return down.reshape(rank, *inner).contiguous(), up.reshape(outputs, rank, *ones).contiguous()


def leading_directions(
    matrix: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest R singular values [R] with their vectors [O, R] and [R, I]; the leading ones of a
    large matrix by iteration from random ones.
    """
    width = min(matrix.shape)
    if width <= max(_EXACT, 2 * (rank + _MORE)):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    found = torch.randn(matrix.shape[1], rank + _MORE, generator=generator).to(matrix)
    for _ in range(_ROUNDS):
        found = torch.linalg.qr(matrix.t() @ torch.linalg.qr(matrix @ found).Q).Q
    u, s, small = torch.linalg.svd(matrix @ found, full_matrices=False)
    return u[:, :rank], s[:rank], small[:rank] @ found.t()

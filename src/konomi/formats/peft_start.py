"""What PiSSA and OLoRA take off a base's weight before training, computed again from that weight.

PEFT itself does so whenever it loads such an adapter. Only the product B0 A0 counts, so that the
signs and the order of singular vectors do not matter; that the r largest singular values stand
apart from the others does.

| start | B0 A0, with W = U S V^T or W = Q R |
|---|---|
| pissa (Meng et al. 2024) | U_r S_r V_r^T, whatever the scale |
| olora (Buyukakyuz 2024) | scale Q_r R_r |

`pissa_niter_N` is a randomised decomposition that no one can repeat; CorDA, LoRA-GA and LoftQ
depend on data or on how the base was quantised.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 2.0**-24
_TOLERANCE = 1e-2
"""Share of a singular direction that rounding in PEFT's float32 may move before the start is no
longer told."""


class StartError(Exception):
    """The start does not follow from the weight: what is wrong, as the end of a sentence."""


def start_of(kind: str, weight_OI: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A0 [rank, I] and B0 [O, rank] with scale B0 A0 = what was taken off. Raises StartError."""
    if weight_OI.dim() != 2 or not scale:
        raise StartError("it is no linear layer with a scale")
    if rank > min(weight_OI.shape):
        raise StartError("its rank is larger than the weight has")
    weight = weight_OI.detach().to("cpu", torch.float64)
    if kind == "olora":
        q, r = torch.linalg.qr(weight)
        _check_determined(
            float(torch.linalg.matrix_norm(weight, 2)),
            float(r.diagonal()[:rank].abs().min()),
            weight,
        )
        return r[:rank].float().contiguous(), q[:, :rank].float().contiguous()
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    if rank < len(s):
        _check_determined(float(s[0]), float(s[rank - 1] - s[rank]), weight)
    return (s[:rank, None] * v[:rank] / scale).float().contiguous(), u[
        :, :rank
    ].float().contiguous()


def _check_determined(largest: float, gap: float, weight: Tensor) -> None:
    """The subspace turns by about rounding error / gap (Davis and Kahan 1970)."""
    if _EPSILON * largest * max(weight.shape) ** 0.5 > _TOLERANCE * gap:
        raise StartError(
            "its directions lie too close together to be told apart, so rounding decides its start"
        )

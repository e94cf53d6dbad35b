"""Rotations of blocks of channels by the Cayley transform, which OFT and BOFT share.

Shapes: N blocks of b x b, O output, I input, K kernel. A skew matrix Q = -Q^T gives the rotation
C(Q) = (I + Q)(I - Q)^-1. What is computed is C - I: near the start it is small, and the rotation
itself would lose it in rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from konomi.adapters.kinds.change_layer import ChangeSpec, Shortcut, Start
from konomi.adapters.kinds.kind import LayerSettings, Training
from konomi.config.bounds import STRICT
from konomi.errors import ModelError, RecipeError

Side = Literal["output", "input"]


def skew(blocks: Tensor) -> Tensor:
    """Q = A - A^T of each block."""
    q: Tensor = blocks - blocks.transpose(-1, -2)
    return q


def bounded(q: Tensor, bound: float) -> Tensor:
    """Q made smaller where the norm of all blocks together is larger than `bound`; 0 for none."""
    if bound <= 0:
        return q
    norm: Tensor = torch.linalg.vector_norm(q).clamp_min(1e-12)
    return q * (bound / norm).clamp(max=1.0)


def cayley_change(q: Tensor) -> Tensor:
    """C(Q) - I = 2 Q (I - Q)^-1."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    change: Tensor = torch.linalg.solve(eye - q, 2 * q)
    return change


def neumann_change(q: Tensor, terms: int) -> Tensor:
    """PEFT's series in place of the inverse: 2 Q + 2 Q^2 + ... + Q^n, which is no rotation but near
    one.
    """
    change, power = 2 * q, q
    if terms < 2:
        return torch.zeros_like(q)
    if terms == 2:
        return change
    # Three terms and four are the same there.
    for exponent in range(2, max(terms, 4)):
        power = power @ q
        change = change + (power if exponent == max(terms, 4) - 1 else 2 * power)
    return change


def as_rows(weight: Tensor, side: Side) -> Tensor:
    """The axis that is turned first: [O, I K K], or [I K K, O]."""
    flat = weight.flatten(1)
    return flat if side == "output" else flat.t()


def from_rows(rows: Tensor, weight: Tensor, side: Side) -> Tensor:
    """The way back to the weight's shape."""
    return (rows if side == "output" else rows.t()).reshape(weight.shape)


def turned(change: Tensor, rows: Tensor) -> Tensor:
    """D_k times the k-th block of rows, of [N, b, b] and [N b, columns]. One block serves all.

    Raises ModelError where the blocks are not as many as the rows.
    """
    blocks, size = change.shape[:2]
    if blocks == 1 and size and rows.shape[0] % size == 0:
        return (change @ rows.reshape(-1, size, rows.shape[1])).reshape(rows.shape)
    check_width(blocks * size, rows)
    return torch.bmm(change, rows.reshape(blocks, size, rows.shape[1])).reshape(rows.shape)


def check_width(width: int, rows: Tensor) -> None:
    """Raises ModelError where blocks are made for another number of rows."""
    if width != rows.shape[0]:
        raise ModelError(f"its blocks turn {width} channels, this weight has {rows.shape[0]}")


def rescaled(change: Tensor, rescale: Tensor | None, weight: Tensor) -> Tensor:
    """s (W + dW) - W, with a factor for each output. Raises ModelError for another number of
    them.
    """
    if rescale is None:
        return change
    if rescale.numel() != weight.shape[0]:
        raise ModelError(
            f"it rescales {rescale.numel()} outputs, this weight has {weight.shape[0]}"
        )
    factors = rescale.reshape(-1, *[1] * (weight.dim() - 1))
    return factors * change + (factors - 1) * weight


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """Rotated blocks of channels."""

    __pydantic_config__ = STRICT

    block_size: Annotated[int, Field(ge=2, le=1024)] = 16
    """Largest size of the blocks. Each layer takes the largest that fits it: for OFT a divisor of
    its outputs that is not larger than the number of blocks, for BOFT an even number of which a
    power of 2 make its outputs. Larger blocks learn more."""
    constraint: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Bound of the rotation: the norm of its generator stays below this times the number of
    outputs; 0 for none (kohya: 1e-5 to 1e-3)."""
    rescale: bool = False
    """Also learn a length for each output."""


def training(
    algorithm: str,
    kind: Callable[..., Any],
    blocks: Callable[[int, int], Tensor | None],
    shortcut: Shortcut | None = None,
) -> Training:
    """How a kind of rotations is trained, from none at all. `kind`: (blocks, constraint, rescale)
    -> update; `blocks`: (width, largest size) -> blocks of zeros, None where none fit.
    """

    def start(
        key: str, module: nn.Linear | nn.Conv2d, settings: LayerSettings, generator: torch.Generator
    ) -> Any:
        del generator
        own = settings.own or RotationSettings()
        weight = module.weight
        zeros = blocks(weight.shape[0], own.block_size)
        if zeros is None:
            raise RecipeError(
                f"no blocks of 2 to {own.block_size} channels fit the {weight.shape[0]} outputs of "
                f"{key}, so nothing would be rotated there. Raise method.{algorithm}.block_size, "
                "or leave the layer out of method.targets."
            )
        ones = torch.ones(weight.shape[0], *[1] * (weight.dim() - 1)) if own.rescale else None
        return kind(zeros, own.constraint, ones)

    from_start: Start = start
    return Training(
        algorithm,
        lambda settings: ChangeSpec(algorithm, settings, from_start, shortcut=shortcut),
        uses=frozenset({"dropout", "rank_dropout", "module_dropout"}),
        settings=RotationSettings,
    )

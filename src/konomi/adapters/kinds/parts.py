"""What several kinds share in the tensors of a layer, as kohya's and LyCORIS' files name them.

Shapes: O output, I input, R rank, K kernel.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SHARED: dict[str, tuple[int, ...]] = {"alpha": (), "dora_scale": (2, 4), "diff_b": (1, 2, 3, 4)}
"""Parts that stand beside those of several kinds, and tell none of them -> how many axes each may
have."""


class LayerError(Exception):
    """A layer's tensors do not fit together: (part or "" for the layer, what is wrong)."""

    def __init__(self, part: str, what: str) -> None:
        super().__init__(part, what)
        self.part = part
        self.what = what


def alpha_of(parts: Mapping[str, Tensor], rank: int) -> float:
    """`alpha`, by default the rank."""
    if "alpha" not in parts:
        return float(rank)
    if parts["alpha"].numel() != 1:
        raise LayerError("alpha", f"has shape {list(parts['alpha'].shape)}; it must be one number")
    value = float(parts["alpha"].item())
    if not math.isfinite(value):
        raise LayerError("alpha", "holds NaN or infinity")
    return value


def bias_of(parts: Mapping[str, Tensor], outputs: int = 0, name: str = "diff_b") -> Tensor | None:
    """What is added to the bias, [O]."""
    bias = parts.get(name)
    if bias is not None and (bias.dim() != 1 or (outputs and bias.numel() != outputs)):
        raise LayerError(name, f"has shape {list(bias.shape)}; [{outputs or 'outputs'}] is needed")
    return bias


def check_core(parts: Mapping[str, Tensor], core: str, outer: str, inner: str) -> None:
    """Of a Tucker core [R, R, K, K]: the ranks of its two factors."""
    ranks = (parts[outer].shape[0], parts[inner].shape[0])
    if tuple(parts[core].shape[:2]) != ranks:
        raise LayerError(
            core, f"has shape {list(parts[core].shape)}; [{ranks[0]}, {ranks[1]}, K, K] is needed"
        )


def scalar(value: float, like: Tensor) -> Tensor:
    """A number as files hold it."""
    return torch.tensor(value, dtype=like.dtype)


def present(parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Those that there are."""
    return {name: tensor for name, tensor in parts.items() if tensor is not None}


def peft_scale(table: Mapping[str, Any]) -> float:
    """alpha / r of PEFT's LyCORIS kinds, whatever the ranks of the tensors; both are 8 there where
    they are not said. Raises LayerError for what are no numbers.
    """
    alpha, rank = table.get("alpha", 8), table.get("r", 8)
    if not all(type(value) in (int, float) and abs(value) < 1e9 for value in (alpha, rank)):
        raise LayerError("", "has settings r and alpha that are no numbers")
    if rank < 1:
        raise LayerError("", "has a setting r below 1")
    return float(alpha / rank)

"""Keep updates from growing beyond a norm (`scale_weight_norms` of sd-scripts)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def shrinking(norm: Callable[[], float], largest: float, factors: int) -> float:
    """What each of the factors of an update is multiplied by, so that an update of this norm comes
    to the largest that is allowed; 1 where it is not larger, but for rounding, or where there is no
    bound (0), and the norm is not asked for then.
    """
    found = norm() if largest else 0.0
    return (largest / found) ** (1 / factors) if found > largest * (1 + 1e-6) else 1.0


@torch.no_grad()
def shrink(factors: Iterable[Tensor], by: float) -> None:
    """In place, and not at all by 1."""
    for factor in factors if by < 1.0 else ():
        factor.mul_(by)

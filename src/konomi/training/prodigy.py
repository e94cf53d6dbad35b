"""Prodigy (Mishchenko & Defazio 2023) for groups whose learning rates differ.

prodigyopt finds one step size d for all parameters and takes the same learning rate, a factor of
d, everywhere. Here a group's rate may be any share of the highest: d is found as ever, and the
group's parameters go that share of the way. With one rate for all groups it is prodigyopt bit for
bit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def make_prodigy(
    settings: list[dict[str, Any]], betas: tuple[float, float], *, warmup: bool
) -> Optimizer:
    """The optimiser over parameter groups, each with its `lr`. Raises ModuleNotFoundError."""
    from prodigyopt import Prodigy

    # Warm-up keeps d small at first; without the safeguard it would be found too large (the
    # package's advice).
    made: Optimizer = Prodigy(settings, lr=1.0, betas=betas, safeguard_warmup=warmup)
    shares = Shares()
    made.register_step_pre_hook(shares.before)
    made.register_step_post_hook(shares.after)
    return made


class Shares:
    """Around a step: one rate for all groups within it, and each group's own share of the way
    after it.

    A step is linear in its rate (decay too), so this equals a step with that rate; what d is
    computed from is where the parameters really are.
    """

    def __init__(self) -> None:
        self._rates: list[float] = []
        self._starts: list[list[Tensor]] = []

    def before(self, optimizer: Optimizer, *_: object) -> None:
        self._rates = [group["lr"] for group in optimizer.param_groups]
        highest = max(self._rates)
        self._starts = []
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            self._starts.append(
                [] if rate == highest else [p.detach().clone() for p in group["params"]]
            )
            group["lr"] = highest

    @torch.no_grad()
    def after(self, optimizer: Optimizer, *_: object) -> None:
        highest = max(self._rates)
        for group, rate, starts in zip(
            optimizer.param_groups, self._rates, self._starts, strict=True
        ):
            group["lr"] = rate
            for parameter, start in zip(group["params"], starts) if starts else ():
                # From the start on, so that a share of 0 leaves the parameter as it was, bit for
                # bit.
                parameter.copy_(torch.lerp(start, parameter, rate / highest))
        self._starts = []

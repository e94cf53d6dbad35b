"""Adafactor (Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory
Cost").

Running squares of a matrix are kept as one mean per row and one per column: for whole models about
half of AdamW's memory, since there is no running mean either. Used as sd-scripts and diffusers
recommend it: the step is the learning rate itself. The paper's scaling of the step by the size of
the parameter (algorithm 4, "relative step size") is left out, because what starts at zero, as B of
a LoRA, would never leave it, and so is the paper's own schedule.

Shapes: O rows, I columns; the kernel of a convolution counts as columns.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FLOOR = 1e-30
"""Added to squared gradients (the paper's epsilon_1)."""
_LONGEST_STEP = 1.0
"""Root mean square above which an update is shortened (the paper's d, section 6)."""
_DECAY = 0.8
"""Memory of the squares: 1 - t^-0.8 (section 7.2)."""


class Adafactor:
    """What the loop, checkpoints and torch's GradScaler need of an optimiser: `param_groups`,
    `state`, `step`.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups: list[dict[str, Any]] = [dict(group) for group in groups]
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(
                        parameter, parameter.grad.float(), group["lr"], group["weight_decay"]
                    )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _update(
        self, parameter: Tensor, gradient: Tensor, rate: float, weight_decay: float
    ) -> None:
        state = self.state[parameter]
        state["step"] = step = state.get("step", 0) + 1
        memory = 1.0 - step**-_DECAY
        squares = gradient.square().add_(_FLOOR)
        if gradient.dim() < 2:
            mean = _running(state, "exp_avg_sq", squares, memory)
            update = gradient * mean.rsqrt()
        else:
            squares_OI = squares.flatten(1)
            rows_O = _running(state, "exp_avg_sq_row", squares_OI.mean(1), memory)
            columns_I = _running(state, "exp_avg_sq_col", squares_OI.mean(0), memory)
            scale_OI = (rows_O / rows_O.mean()).rsqrt()[:, None] * columns_I.rsqrt()[None]
            update = gradient * scale_OI.view(gradient.shape)
        root_mean_square = update.norm() / math.sqrt(update.numel())
        update /= (root_mean_square / _LONGEST_STEP).clamp(min=1.0)
        if weight_decay:
            parameter.mul_(1.0 - weight_decay * rate)
        parameter.sub_(update.mul_(rate))


def _running(state: dict[str, Any], name: str, value: Tensor, memory: float) -> Tensor:
    """The running mean kept under `name`, with `value` taken in."""
    mean: Tensor | None = state.get(name)
    if mean is None:
        mean = state[name] = torch.zeros_like(value)
    return mean.mul_(memory).add_(value, alpha=1.0 - memory)

"""AdamW around torch's own fused kernel (Loshchilov & Hutter 2019).

The arithmetic is torch's: the same `_fused_adamw_` that `torch.optim.AdamW(fused=True)` calls, so
results are the same bit for bit. What is left out is the class around it, which imports torch's
compiler on first use (a second and more before the first step) and sorts all tensors by device and
type anew in every step.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FUSED_DEVICES = ("cpu", "cuda")


class FusedAdamW:
    """What the loop, checkpoints and torch's GradScaler need of an optimiser: `param_groups`,
    `state`, `step`.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {**group, "betas": betas, "eps": eps, "fused": True} for group in groups
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.grad_scale: Tensor | None = None
        """Gradients are divided by this on the way, when set."""
        self.found_inf: Tensor | None = None
        """1 leaves weights and moments as they are (the step counter too), when set."""

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(p) for p in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            beta_1, beta_2 = group["betas"]
            torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=beta_1,
                beta2=beta_2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
            )
            if self.found_inf is not None:
                torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

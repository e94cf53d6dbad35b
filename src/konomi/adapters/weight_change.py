"""Trained changes beside frozen linear layers: y = W x + dW x, with dW of full rank in float32.

Shapes: B batch, T positions, O output, I input features.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Replacement
from konomi.adapters.live import paused
from konomi.diffusion.random import Rng


class WeightChanges:
    """The changes of one training, by canonical key, as a `LiveAdapter`."""

    def __init__(self, modules: Mapping[str, nn.Module], *, frozen_every: int = 0) -> None:
        """`frozen_every` L: what the layers answer at positions 0, L, 2L ... carries no gradient;
        0 frees them all.
        """
        self.modules: dict[str, Any] = dict(modules)
        self.frozen_every = frozen_every
        self.parameters: dict[str, nn.Parameter] = {}
        """Canonical key -> dW [O, I], float32 (float64 beside float64)."""
        for key, module in self.modules.items():
            module.requires_grad_(False)
            dtype = torch.float64 if module.weight.dtype == torch.float64 else torch.float32
            self.parameters[key] = nn.Parameter(torch.zeros_like(module.weight, dtype=dtype))
        self._hooks = ExitStack()
        self.attached = False
        self.attach()

    def begin_step(self, rng: Rng) -> None:
        """They draw nothing."""

    def pause(self) -> AbstractContextManager[None]:
        return paused(self)

    def attach(self) -> None:
        if self.attached:
            return
        for key, module in self.modules.items():
            self._hooks.callback(
                module.register_forward_hook(self._adder(self.parameters[key])).remove
            )
        self.attached = True

    def detach(self) -> None:
        self._hooks.close()
        self.attached = False

    def export(self) -> Adapter:
        """W + dW of each layer, at least in float32, beside W itself."""
        exported = {}
        for key, parameter in self.parameters.items():
            origin = self.modules[key].weight.detach()
            exported[key] = Replacement(origin.to(parameter.dtype) + parameter.detach(), origin)
        return Adapter(layers=dict(exported))

    def _adder(
        self, change: nn.Parameter
    ) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def add(_: nn.Module, inputs: tuple[Any, ...], answer_BTO: Tensor) -> Tensor:
            states_BTI: Tensor = inputs[0]
            # Half precision would round the small changes of a few hundred steps away.
            with torch.autocast(states_BTI.device.type, enabled=False):
                added = functional.linear(states_BTI.to(change.dtype), change)
                changed = (answer_BTO.to(change.dtype) + added).to(answer_BTO.dtype)
            if not self.frozen_every:
                return changed
            frozen_T = (
                torch.arange(changed.shape[1], device=changed.device) % self.frozen_every == 0
            )
            return torch.where(frozen_T[None, :, None], changed.detach(), changed)

        return add

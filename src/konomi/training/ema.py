"""The exponential moving average of the weights (EMA), kept beside those in training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """average <- decay * average + (1 - decay) * weight, with the decay warmed up as (1 + n) / (10
    + n).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in parameters.items()
        }
        self.updates = 0

    def update(self) -> None:
        """After an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [self.tensors[name] for name in self.parameters]
        torch._foreach_lerp_(averages, [p.detach() for p in self.parameters.values()], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones; pointers move, nothing is copied."""
        trained = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.tensors[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = trained[name]

"""The two branches of guidance, where they do not share their weights (DreamArtist++).

Rows of a batch are the two branches one after the other, the negative first.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from konomi.adapters.lora import LoraLayer, LoraLayers
from konomi.adapters.pausing import paused


class HasBranches(Protocol):
    """The part of a base that is needed here."""

    @property
    def negative_weights(self) -> dict[nn.Parameter, Tensor]:
        """Weights that are something else in the negative branch, and what."""
        ...


@contextmanager
def negative_branch(base: HasBranches) -> Iterator[None]:
    """Inside, the base computes with the weights of the negative branch. Nothing is copied."""
    _swap(base.negative_weights)
    try:
        yield
    finally:
        _swap(base.negative_weights)


def _swap(weights: dict[nn.Parameter, Tensor]) -> None:
    for parameter, other in weights.items():
        weights[parameter] = parameter.data
        parameter.data = other


class BranchLayers:
    """Low-rank layers of both branches on the same modules of a denoiser, for training.

    While a module is in training mode its rows are the two branches; in evaluation mode they all are the positive one.
    There must be no change of mode between a forward pass and its backward pass: a checkpointed one computes again.
    """

    def __init__(self, positive: LoraLayers, negative: LoraLayers) -> None:
        """Takes both over: by themselves they are attached no more."""
        assert positive.layers.keys() == negative.layers.keys()
        self.positive, self.negative = positive, negative
        for layers in (positive, negative):
            layers.detach()
        self._attach()

    @property
    def parameters(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """`positive` and `negative` -> parameters by name."""
        return {"positive": self.positive.parameters, "negative": self.negative.parameters}

    def pause(self) -> AbstractContextManager[None]:
        """Inside, the base computes as if it had never been touched."""
        return paused(self.detach, self._attach)

    @contextmanager
    def both_branches(self) -> Iterator[None]:
        """Inside, batches are of both branches also where the base is in evaluation mode."""
        changed = [layer.base for layer in self.positive.layers.values() if not layer.base.training]
        try:
            for module in changed:
                module.training = True
            yield
        finally:
            for module in changed:
                module.training = False

    def detach(self) -> None:
        """Give the base back."""
        for layer in self.positive.layers.values():
            vars(layer.base).pop("forward", None)

    def _attach(self) -> None:
        for key, layer in self.positive.layers.items():
            assert "forward" not in vars(layer.base), f"{key} already has a replaced forward"
            vars(layer.base)["forward"] = partial(_forward, layer, self.negative.layers[key])


def _forward(positive: LoraLayer, negative: LoraLayer, x: Tensor) -> Tensor:
    if not positive.base.training:
        return positive.forward(x)
    below, above = x.chunk(2)
    return torch.cat([negative.forward(below), positive.forward(above)])

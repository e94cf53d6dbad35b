"""The two branches of guidance, where they do not share their weights (DreamArtist++).

Rows of a batch are the two branches one after the other, the negative first.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import TrainableLayer
from konomi.adapters.layers import TrainedLayers
from konomi.adapters.live import paused
from konomi.diffusion.random import Rng


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
    """Trained layers of both branches on the same modules of a denoiser, as one `LiveAdapter`.

    While a module is in training mode its rows are the two branches; in evaluation mode they all
    are the positive one. There must be no change of mode between a forward pass and its backward
    pass: a checkpointed one computes again.
    """

    def __init__(self, positive: TrainedLayers, negative: TrainedLayers) -> None:
        """Takes both over: by themselves they are attached no more."""
        assert positive.layers.keys() == negative.layers.keys()
        self.positive, self.negative = positive, negative
        for layers in (positive, negative):
            layers.detach()
        self.attached = False
        self.attach()

    @property
    def branches(self) -> Mapping[str, TrainedLayers]:
        """`positive` and `negative` -> its layers, by themselves attached no more."""
        return {"positive": self.positive, "negative": self.negative}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """`BRANCH.KEY.NAME` -> parameter."""
        return {
            f"{branch}.{name}": parameter
            for branch, layers in self.branches.items()
            for name, parameter in layers.parameters.items()
        }

    def begin_step(self, rng: Rng) -> None:
        """Each branch draws its own."""
        for branch, layers in self.branches.items():
            layers.begin_step(rng.fork(branch))

    def pause(self) -> AbstractContextManager[None]:
        return paused(self)

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

    def attach(self) -> None:
        if self.attached:
            return
        for key, layer in self.positive.layers.items():
            assert "forward" not in vars(layer.base), f"{key} already has a replaced forward"
            vars(layer.base)["forward"] = partial(_forward, layer, self.negative.layers[key])
        self.attached = True

    def detach(self) -> None:
        if not self.attached:
            return
        for layer in self.positive.layers.values():
            del vars(layer.base)["forward"]
        self.attached = False

    def export(self) -> Adapter:
        """The positive branch's layers, with those of the negative one as `negative`."""
        return Adapter(layers=self.positive.export().layers, negative=self.negative.export())


def _forward(positive: TrainableLayer, negative: TrainableLayer, x: Tensor) -> Tensor:
    if not positive.base.training:
        return positive.forward(x)
    below, above = x.chunk(2)
    return torch.cat([negative.forward(below), positive.forward(above)])

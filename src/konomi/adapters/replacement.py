"""Whole weights and differences: two ways to say what a layer became, and the base that links them.

Shapes: O output, I input, R rank.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter, Difference, LayerUpdate, LowRank, Replacement
from konomi.adapters.delta import bias_delta, delta
from konomi.errors import ModelError


class HasModule(Protocol):
    """The part of a base that is needed here."""

    def module(self, key: str) -> nn.Module: ...


def with_origins(base: HasModule, adapter: Adapter) -> Adapter:
    """The adapter with every layer as a whole weight beside the base's own, in float32: what any format can hold.

    Raises ModelError where the base has no such layer, or one of another shape.
    """
    layers: dict[str, LayerUpdate] = {}
    for key, update in adapter.layers.items():
        weight = getattr(base.module(key), "weight", None)
        if not isinstance(weight, Tensor):
            raise ModelError(f"{key} has no weight that an adapter could change.")
        origin = weight.detach().to("cpu", torch.float32)
        try:
            change = delta(update, origin)
        except (ModelError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ModelError(f"{adapter.name or 'The adapter'} does not fit {key}: {reason}. Another base?") from error
        # A weight that is given whole stays as it is, bit for bit.
        whole = update.weight.to(origin) if isinstance(update, Replacement) else origin + change
        layers[key] = Replacement(whole, origin, _whole_bias(update, base.module(key)))
    return replace(adapter, layers=layers)


def _whole_bias(update: LayerUpdate, module: nn.Module) -> Tensor | None:
    """b + db [O] at least in float32, or None where the update leaves the bias alone."""
    given = getattr(update, "bias", None)
    if given is None or isinstance(update, Replacement):
        return given
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor):
        raise ModelError("the update changes a bias, and the layer has none.")
    origin = bias.detach().to("cpu", torch.float32)
    change = bias_delta(update, origin)
    return origin if change is None else origin + change


def as_differences(base: HasModule, adapter: Adapter, keys: Collection[str]) -> Adapter:
    """The adapter with some of its layers as plain differences from the base's weights, in float32.

    Raises ModelError where the base has no such layer, or one of another shape.
    """
    chosen = replace(adapter, layers={key: adapter.layers[key] for key in keys})
    whole = with_origins(base, chosen).layers
    biases = {key: getattr(adapter.layers[key], "bias", None) for key in keys}
    differences = {key: Difference(difference_of(whole[key]), biases[key]) for key in keys}
    return replace(adapter, layers=adapter.layers | differences)


def difference_of(update: LayerUpdate) -> Tensor | None:
    """dW [O, I] of a layer where it is told without the base, at least in float32; None where the base is needed."""
    match update:
        case Replacement(origin=Tensor() as origin):
            whole = _precise(update.weight)
            return whole - origin.to(whole)
        case Difference(weight=Tensor() as weight):
            return _precise(weight)
        case LowRank(mid=None, magnitude=None):
            return _precise(update.up) @ _precise(update.down) * (update.alpha / update.down.shape[0])
    return None


def compress(layers: Mapping[str, LayerUpdate], share: float) -> dict[str, LayerUpdate]:
    """Each difference by the fewest singular directions whose values make up `share` of their sum (0 < share <= 1).

    Computed in float64; the result is low rank (Kumari et al. 2022, section 3.3). Raises ModelError for a layer whose
    difference is not told without the base.
    """
    return {key: _compress(key, update, share) for key, update in layers.items()}


def _compress(key: str, update: LayerUpdate, share: float) -> LowRank:
    difference = difference_of(update)
    if difference is None or getattr(update, "bias", None) is not None:
        raise ModelError(f"{key} is given as a whole weight. To compress what was learned, name the base: --base BASE.")
    u, s, v = torch.linalg.svd(difference.flatten(1).double(), full_matrices=False)
    # Rounding in the sum must not cost a direction; a layer that learned nothing still needs one to be written.
    reached = s.cumsum(0) >= share * s.sum() * (1 - 1e-12)
    rank = int(reached.to(torch.int8).argmax()) + 1
    return LowRank(v[:rank].float().contiguous(), (u[:, :rank] * s[:rank]).float().contiguous(), float(rank))


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()

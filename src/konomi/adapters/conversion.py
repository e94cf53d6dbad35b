"""An adapter's layers as layers of another kind: whole weights, differences, low rank. Most ways
need the base.

Shapes: O output, I input, K kernel, R rank.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import bias_delta, delta
from konomi.adapters.kinds import Difference, LayerUpdate, LowRank, Replacement
from konomi.errors import ModelError


class HasModule(Protocol):
    """The part of a base that is needed here."""

    def module(self, key: str) -> nn.Module: ...


def with_origins(base: HasModule, adapter: Adapter) -> Adapter:
    """The adapter with every layer as a whole weight beside the base's own, in float32: what any
    format can hold.

    Raises ModelError where the base has no such layer, or one of another shape.
    """
    return replace(adapter, layers=dict(whole_layers(base, adapter)))


def whole_layers(base: HasModule, adapter: Adapter) -> dict[str, Replacement]:
    """The same layers alone."""
    layers = {}
    weight_of = weights_of(base)
    for key, update in adapter.layers.items():
        origin = weight_of(key)
        try:
            change = delta(update, origin)
        except (ModelError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ModelError(
                f"{adapter.name or 'The adapter'} does not fit {key}: {reason}. Another base?"
            ) from error
        # A weight that is given whole stays as it is, bit for bit.
        whole = origin + change if update.whole is None else update.whole.to(origin)
        layers[key] = Replacement(whole, origin, _whole_bias(update, base.module(key)))
    return layers


def _whole_bias(update: LayerUpdate, module: nn.Module) -> Tensor | None:
    """b + db [O] at least in float32, or None where the update leaves the bias alone."""
    if update.bias is None or update.whole is not None:
        return update.bias
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor):
        raise ModelError("the update changes a bias, and the layer has none.")
    origin = bias.detach().to("cpu", torch.float32)
    change = bias_delta(update, origin)
    return origin if change is None else origin + change


def weights_of(base: HasModule) -> Callable[[str], Tensor]:
    """Canonical key -> the base's own weight, in float32 on the CPU; a part is loaded when one of
    it is asked for.
    """

    def weight_of(key: str) -> Tensor:
        weight = getattr(base.module(key), "weight", None)
        if not isinstance(weight, Tensor):
            raise ModelError(f"{key} has no weight that an adapter could change.")
        return weight.detach().to("cpu", torch.float32)

    return weight_of


def as_differences(base: HasModule, adapter: Adapter, keys: Collection[str]) -> Adapter:
    """The adapter with some of its layers as plain differences from the base's weights, in float32.

    Raises ModelError where the base has no such layer, or one of another shape.
    """
    chosen = replace(adapter, layers={key: adapter.layers[key] for key in keys})
    whole = whole_layers(base, chosen)
    differences = {
        key: Difference(whole[key].difference(), adapter.layers[key].bias) for key in keys
    }
    return replace(adapter, layers=adapter.layers | differences)


def compress(layers: Mapping[str, LayerUpdate], share: float) -> dict[str, LayerUpdate]:
    """Each difference by the fewest singular directions whose values make up `share` of their sum
    (0 < share <= 1).

    Computed in float64; the result is low rank (Kumari et al. 2022, section 3.3). Raises
    ModelError for a layer whose difference is not told without the base.
    """
    return {key: _compress(key, update, share) for key, update in layers.items()}


def _compress(key: str, update: LayerUpdate, share: float) -> LowRank:
    difference = update.difference()
    if difference is None or update.bias is not None:
        raise ModelError(
            f"{key} is given as a whole weight. To compress what was learned, name the base: "
            "--base BASE."
        )
    u, s, v = torch.linalg.svd(difference.flatten(1).double(), full_matrices=False)
    # Rounding in the sum must not cost a direction; a layer that learned nothing still needs one
    # to be written.
    reached = s.cumsum(0) >= share * s.sum() * (1 - 1e-12)
    rank = int(reached.to(torch.int8).argmax()) + 1
    down = v[:rank].float().reshape(rank, *difference.shape[1:]).contiguous()
    up = (
        (u[:, :rank] * s[:rank])
        .float()
        .reshape(len(u), rank, *[1] * (difference.dim() - 2))
        .contiguous()
    )
    return LowRank(down, up, float(rank))

"""Hypernetworks at work: small networks before the key and value projections of attention (NovelAI 2022).

Shapes: B batch, T positions attended to, D their width.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn

from konomi.adapters.adapter import Hypernetwork
from konomi.errors import ModelError

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,  # What web UIs call so.
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
}


class HasAttention(Protocol):
    """The part of a base that is needed here."""

    def targets(self, word: str) -> Mapping[str, nn.Module]: ...


def build_network(width: int, spec: Hypernetwork) -> nn.Sequential:
    """One network of a hypernetwork's structure, with torch's own start: [..., D] -> [..., D]."""
    widths = [int(width * multiple) for multiple in spec.structure]
    last = len(widths) - 2
    layers: list[nn.Module] = []
    for index, (inner, outer) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inner, outer))
        if spec.activation != "linear" and (index < last or spec.activate_output):
            layers.append(ACTIVATIONS[spec.activation]())
        if spec.layer_norm:
            layers.append(nn.LayerNorm(outer))
        if spec.dropout and spec.dropout[index + 1] > 0:
            layers.append(nn.Dropout(spec.dropout[index + 1]))
    return nn.Sequential(*layers)


def attach_hypernetwork(
    base: HasAttention, hypernetwork: Hypernetwork, strength: float, name: str = ""
) -> Callable[[], None]:
    """Hang the networks before `to_k` and `to_v` of every attention layer of their widths; returns what takes them off.

    Raises ModelError where the base has no layer of such a width.
    """
    undo = ExitStack()
    met = set()
    loaded = {
        width: tuple(_load(width, half.tensors, hypernetwork) for half in p) for width, p in hypernetwork.pairs.items()
    }
    for key, layer in base.targets("attention.kv").items():
        width = int(layer.in_features)  # type: ignore[arg-type]
        if width in loaded:
            met.add(width)
            network = loaded[width][key.endswith("to_v")].to(layer.weight.device, layer.weight.dtype)  # type: ignore[arg-type]
            undo.callback(layer.register_forward_pre_hook(_adder(network, strength)).remove)
    if not met:
        undo.close()
        widths = ", ".join(map(str, sorted(hypernetwork.pairs)))
        raise ModelError(
            f"The hypernetwork {name or 'given'} is for attention layers of width {widths}; this base has none such. "
            "It was made for another family of models."
        )
    return undo.close


def _load(width: int, tensors: Mapping[str, Tensor], spec: Hypernetwork) -> nn.Sequential:
    network = build_network(width, spec).requires_grad_(False).eval()
    network.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in tensors.items()})
    return network


def _adder(network: nn.Module, strength: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (inputs[0] + network(inputs[0]) * strength,)

    return add

"""Hypernetworks at work: small networks before the key and value projections of attention (NovelAI
2022).

k = to_k(c + s N_k(c)), v = to_v(c + s N_v(c)): c is what an attention layer attends to (text, or
in self-attention the picture itself), D its width, s the strength. One pair (N_k, N_v) serves all
attention layers of a width; q is left alone. Several chain: the second reads what the first has
changed.

A network is a row of linear layers, each followed by its activation, layer norm and dropout as far
as there are any, in this order. Positions in the row name the tensors: `linear.{i}.weight`, so
each activation moves what follows by one.

Shapes: B batch, T positions attended to, D their width.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from konomi.adapters.adapter import Adapter, Hypernetwork, Perceptron
from konomi.adapters.dropout import dropout, for_batch
from konomi.adapters.live import paused
from konomi.diffusion.random import Rng
from konomi.errors import ModelError

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU,
    "swish": nn.Hardswish,  # What web UIs call so.
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "celu": nn.CELU, "gelu": nn.GELU,
    "hardshrink": nn.Hardshrink,
    "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish, "hardtanh": nn.Hardtanh,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish, "prelu": nn.PReLU, "relu6": nn.ReLU6, "rrelu": nn.RReLU, "selu": nn.SELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus, "softshrink": nn.Softshrink, "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
}  # fmt: skip
"""Name in files -> module; besides there is `linear`, for none. What web UIs list beyond these
needs arguments, or mixes the pictures of a batch (softmax)."""

HALVES = ("k", "v")


class HasAttention(Protocol):
    """The part of a base that is needed here."""

    def select_layers(self, selector: str) -> Mapping[str, nn.Module]: ...


def build_network(width: int, spec: Hypernetwork) -> nn.Sequential:
    """The row of layers of a hypernetwork's structure, with torch's own start: [..., D] -> [...,
    D].
    """
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


class Network(nn.Module):
    """N_k or N_v of one width. Its parameters are float32 (float64 for a base of that type)
    whatever the base computes in.
    """

    def __init__(self, width: int, spec: Hypernetwork) -> None:
        super().__init__()
        self.linear = build_network(width, spec)

    def forward(self, states_BTD: Tensor, rng: Rng | None = None) -> Tensor:
        """What is added to the states, in their type. `rng`, with a key per sample, switches
        dropout on.
        """
        dtype = states_BTD.dtype
        half = dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(states_BTD.device.type, dtype=dtype) if half else nullcontext():
            hidden = states_BTD
            for position, layer in enumerate(self.linear):
                if not isinstance(layer, nn.Dropout):
                    hidden = layer(hidden)
                elif rng is not None:
                    hidden = dropout(hidden, layer.p, rng.fork(str(position)))
        return hidden.to(dtype)


Pairs = Mapping[int, tuple[Network, Network]]


class LiveHypernetwork:
    """Networks before the projections of a base, by hooks, as a `LiveAdapter`."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        pairs: Pairs,
        spec: Hypernetwork,
        *,
        values: Collection[str],
        strength: float = 1.0,
    ) -> None:
        """`spec` is the structure of the pairs, whatever pairs it has itself; `values` the keys of
        those layers that are value projections, the others being of keys.
        """
        self._values = frozenset(values)
        self.layers = {key: layer for key, layer in layers.items() if width_of(layer) in pairs}
        self.pairs = dict(pairs)
        self.spec = spec
        self.strength = strength
        self._rng: Rng | None = None
        self._recorded: tuple[frozenset[str], list[Tensor]] | None = None
        self._handles: list[RemovableHandle] = []
        self.attach()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """`{width}.{k or v}.linear.{i}.weight` and so on -> parameter."""
        return {
            f"{width}.{half}.{name}": parameter
            for width, pair in self.pairs.items()
            for half, network in zip(HALVES, pair)
            for name, parameter in network.named_parameters()
        }

    def begin_step(self, rng: Rng) -> None:
        """Dropout acts while the base is in training mode; each layer and position draws its
        own.
        """
        self._rng = rng

    @contextmanager
    def recording(self, keys: frozenset[str]) -> Iterator[list[Tensor]]:
        """Inside, what is added before the layers `keys` (times no strength) is appended to the
        list.
        """
        outputs: list[Tensor] = []
        self._recorded = (keys, outputs)
        try:
            yield outputs
        finally:
            self._recorded = None

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self) -> None:
        if self._handles:
            return
        for key, layer in self.layers.items():
            self._handles.append(
                layer.register_forward_pre_hook(self._hook(key, self._network_of(key, layer)))
            )

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def pause(self) -> AbstractContextManager[None]:
        return paused(self)

    def export(self) -> Adapter:
        """The networks with their structure."""
        pairs = {width: (_copy(pair[0]), _copy(pair[1])) for width, pair in self.pairs.items()}
        return Adapter(hypernetwork=replace(self.spec, pairs=pairs))

    def _network_of(self, key: str, layer: nn.Module) -> Network:
        return self.pairs[width_of(layer)][key in self._values]

    def _hook(
        self, key: str, network: Network
    ) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        has_dropout = any(isinstance(layer, nn.Dropout) for layer in network.linear)

        def add(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            states, *others = inputs
            rng = None
            if has_dropout and layer.training and self._rng is not None:
                rng = for_batch(self._rng, states.shape[0]).fork(key)
            added = network(states, rng)
            # In the backward pass of a checkpoint nobody records, and the same operations are done
            # again.
            if self._recorded is not None and key in self._recorded[0]:
                self._recorded[1].append(added)
            return (states + added * self.strength, *others)

        return add


def attach_hypernetwork(
    base: HasAttention,
    hypernetwork: Hypernetwork,
    strength: float,
    name: str = "",
    family: str = "",
) -> Callable[[], None]:
    """Hang the networks before `to_k` and `to_v` of every attention layer of their widths; returns
    what takes them off.

    Raises ModelError where the base is of another family.
    """
    check_fits(base, hypernetwork, name, family)
    layers = base.select_layers("attention.kv")
    weight = next(iter(layers.values())).weight
    assert isinstance(weight, Tensor)
    pairs = {}
    for width, halves in hypernetwork.pairs.items():
        k, v = (
            make_network(width, hypernetwork, weight).requires_grad_(False).eval() for _ in HALVES
        )
        k.load_state_dict(halves[0].tensors)
        v.load_state_dict(halves[1].tensors)
        pairs[width] = (k, v)
    values = base.select_layers("attention.v")
    return LiveHypernetwork(layers, pairs, hypernetwork, values=values, strength=strength).detach


def make_network(width: int, spec: Hypernetwork, like: Tensor) -> Network:
    """A network on a weight's device, in float32 or the weight's type, whichever is finer."""
    return Network(width, spec).to(like.device, torch.promote_types(like.dtype, torch.float32))


def check_fits(
    base: HasAttention, hypernetwork: Hypernetwork, name: str = "", family: str = ""
) -> None:
    """Raises ModelError where a base is of another family than `family`, has no layer of the
    hypernetwork's widths, or reads text of another width.
    """
    has = {width_of(layer) for layer in base.select_layers("attention.kv").values()}
    text = {width_of(layer) for layer in base.select_layers("cross_attention.kv").values()}
    own_family = getattr(base, "family", "")
    lacking = sorted(set(hypernetwork.pairs) - has)
    title = f"The hypernetwork {name or 'given'}"
    # Families share widths of self-attention; the width of their text tells them apart.
    if len(lacking) == len(hypernetwork.pairs) or (lacking and not text & set(hypernetwork.pairs)):
        widths, wanted = (", ".join(map(str, sorted(found))) for found in (lacking, has))
        raise ModelError(
            f"{title} is for attention layers of width {widths}; this base has no such layers (its "
            f"widths are {wanted}). It was made for another family of models."
        )
    if family and own_family and family != own_family:
        raise ModelError(
            f"{title} is for {family}, this base is {own_family}: use a base of its family."
        )


def width_of(layer: nn.Module) -> int:
    """D of a key or value projection."""
    return int(layer.in_features)  # type: ignore[arg-type]


def _copy(network: Network) -> Perceptron:
    return Perceptron(
        {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    )

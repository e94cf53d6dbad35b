"""Trainable low-rank layers on a frozen base.

LoRA (Hu et al. 2021), DoRA (Liu et al. 2024), rsLoRA (Kalajdzievski 2023). A layer replaces the `forward` of one Linear
or Conv2d of the base and touches nothing else: the base keeps its tree, its names and its weights, bit for bit. The
factors are float32 whatever the base computes in.

Shapes: I input, O output features or channels, K kernel, R rank, B samples.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.adapters.adapter import LowRank, axis_of_magnitude
from konomi.adapters.dropout import dropped, for_batch, kept, make_up
from konomi.adapters.low_rank import Window, low_rank_conv, low_rank_linear
from konomi.adapters.pausing import paused
from konomi.diffusion.random import Rng, stable_hash
from konomi.errors import ModelError, RecipeError


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """What one layer's update looks like."""

    rank: int
    alpha: float
    dropout: float = 0.0
    """Chance of each input value being left out of the update."""
    rank_dropout: float = 0.0
    """Chance of each of the R directions being left out, per sample."""
    module_dropout: float = 0.0
    """Chance of the whole update being left out, per sample."""
    rs_lora: bool = False
    """Scale by alpha / sqrt(R) in place of alpha / R."""
    dora: bool = False
    """Also learn the lengths of weights (DoRA)."""
    dora_axis: Literal["output", "input"] = "output"
    """Whose lengths: each output's weights (the paper, PEFT, diffusers) or each input's (A1111, LyCORIS' first)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 or self.rank_dropout > 0 or self.module_dropout > 0


class LoraLayer(nn.Module):
    """The update of one layer. `down` [R, I(, K, K)], `up` [O, R(, 1, 1)] and, for DoRA, `magnitude` [O, 1(, 1, 1)] or
    [1, I(, 1, 1)]."""

    magnitude: nn.Parameter | None

    def __init__(self, key: str, base: nn.Linear | nn.Conv2d, spec: LoraSpec, *, seed: int) -> None:
        super().__init__()
        # In a tuple, so that the base does not become a part of this module.
        self._base = (base,)
        self.key = key
        self.spec = spec
        self.scale = spec.scale
        self.rng: Rng | None = None
        out_features, in_features, *kernel = base.weight.shape
        self.window = None
        if isinstance(base, nn.Conv2d):
            self.window = _window(key, base)
        limit = min(out_features, in_features * math.prod(kernel))
        if spec.rank > limit:
            raise RecipeError(
                f"the rank of {key} is {spec.rank}; this layer allows at most {limit}. Lower the rank that is set for "
                "such layers: method.rank, conv_rank or text_rank (in DreamArtist method.lora_rank)."
            )
        device = base.weight.device
        generator = torch.Generator().manual_seed(stable_hash("lora", seed, key) & (2**63 - 1))
        bound = 1.0 / math.sqrt(in_features * math.prod(kernel))
        down = torch.empty(spec.rank, in_features, *kernel).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(out_features, spec.rank, *[1 for _ in kernel], device=device))
        self.magnitude = None
        if spec.dora:
            self.magnitude = nn.Parameter(_lengths(base.weight.detach().float(), spec.dora_axis))

    @property
    def base(self) -> nn.Linear | nn.Conv2d:
        return self._base[0]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's answer with the update."""
        weight, bias = self.base.weight, self.base.bias
        gain = self._gain()
        if gain is not None and self.spec.dora_axis == "input":
            # (W + dW) diag(gain) x, in float32 like the other axis: a gain of 1.001 would be 1 in bfloat16.
            x = (x * gain.view((-1,) if self.window is None else (-1, 1, 1))).to(x.dtype)
            gain = None
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        plain_bias = bias if gain is None else None
        if self.rng is not None and self.base.training:
            y = self._with_dropout(x, weight, plain_bias)
        elif self.window is None:
            y = low_rank_linear(x, weight, plain_bias, self.down, self.up, scale=self.scale)
        else:
            y = low_rank_conv(x, weight, plain_bias, self.down, self.up, self.window, scale=self.scale)
        if gain is None:
            return y
        # In float32: a gain of 1.001 would be 1 in bfloat16, and never learned.
        channels = (-1,) if self.window is None else (-1, 1, 1)
        scaled = y * gain.view(channels)
        return (scaled if bias is None else scaled + bias.view(channels)).to(y.dtype)

    def _gain(self) -> Tensor | None:
        """DoRA's factors: learned length / length of W + dW; no gradient through the latter (section 4.3)."""
        if self.magnitude is None:
            return None
        with torch.no_grad():
            weight = self.base.weight.to(self.up.dtype)
            delta = (self.up.flatten(1) @ self.down.flatten(1)).view(weight.shape)
            lengths = _lengths(weight + self.scale * delta, self.spec.dora_axis)
        return self.magnitude / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)

    def _with_dropout(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.rng is not None
        spec, rng = self.spec, for_batch(self.rng, x.shape[0])
        inputs = dropped(x, spec.dropout, rng.fork("dropout")) if spec.dropout > 0 else x
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        hidden = F.linear(inputs, down) if self.window is None else self.window.convolve(inputs, down)
        # R is the last axis of a linear layer's hidden state, the second of a convolution's.
        rank_shape = [1] * (x.dim() - 1)
        rank_shape[-1 if self.window is None else 0] = spec.rank
        if spec.rank_dropout > 0:
            keep = kept(rank_shape, spec.rank_dropout, rng.fork("rank_dropout"))
            hidden = hidden * keep * make_up(spec.rank_dropout)
        if spec.module_dropout > 0:
            hidden = hidden * kept([1] * (x.dim() - 1), spec.module_dropout, rng.fork("module_dropout"))
        if self.window is None:
            return F.linear(x, weight, bias) + F.linear(hidden, up) * self.scale
        return self.window.convolve(x, weight, bias) + F.conv2d(hidden, up) * self.scale

    def export(self) -> LowRank:
        """A float32 copy; alpha is such that alpha / R is this layer's scale."""
        return LowRank(
            down=self.down.detach().clone(),
            up=self.up.detach().clone(),
            alpha=self.scale * self.spec.rank,
            magnitude=None if self.magnitude is None else self.magnitude.detach().clone(),
        )


class LoraLayers:
    """The low-rank layers of one training, by canonical key. While attached, the base computes with them."""

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        self.layers = dict(layers)
        self._attached = False
        self._attach()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """`KEY.down`, `KEY.up`, `KEY.magnitude` -> parameter, in the order of the layers."""
        named = ((key, layer.named_parameters()) for key, layer in self.layers.items())
        return {f"{key}.{name}": parameter for key, parameters in named for name, parameter in parameters}

    def begin_step(self, rng: Rng) -> None:
        """Give dropout its randomness for all passes up to the next call. `rng` has a key per sample.

        Dropout acts while the base's module is in training mode. There must be no other call between a forward pass
        and its backward pass: a checkpointed backward pass draws its masks again. A pass over fewer samples than keys
        uses the first keys; over more, each key serves several samples.
        """
        for key, layer in self.layers.items():
            if layer.spec.has_dropout:
                layer.rng = rng.fork(key)

    def pause(self) -> AbstractContextManager[None]:
        """Inside, the base computes as if it had never been touched."""
        return paused(self._detach, self._attach) if self._attached else nullcontext()

    def attach(self) -> None:
        """Put the layers back on after `detach`."""
        if not self._attached:
            self._attach()

    def detach(self) -> None:
        """Give the base back, for good or until `attach`."""
        self._detach()

    def export(self) -> dict[str, LowRank]:
        """Canonical key -> copy of the update, float32."""
        return {key: layer.export() for key, layer in self.layers.items()}

    @torch.no_grad()
    def load(self, updates: Mapping[str, LowRank]) -> None:
        """Go on from earlier updates. Layers without one keep their start, which changes nothing.

        Raises ModelError if an update has no layer here, or another rank or shape.
        """
        for key, update in updates.items():
            if key not in self.layers:
                raise ModelError(f"{key} is in the file to go on from, but is not trained.")
            _load_layer(self.layers[key], update)

    def _attach(self) -> None:
        for key, layer in self.layers.items():
            assert "forward" not in vars(layer.base), f"{key} already has a replaced forward"
            vars(layer.base)["forward"] = layer.forward
        self._attached = True

    def _detach(self) -> None:
        if self._attached:
            for layer in self.layers.values():
                del vars(layer.base)["forward"]
        self._attached = False


def inject(modules: Mapping[str, nn.Module], spec_of: Callable[[str], LoraSpec], *, seed: int) -> LoraLayers:
    """Put a low-rank layer on each module (canonical key -> Linear or Conv2d) and freeze the modules' own parameters.

    The start of each layer depends on (seed, key) only. Raises RecipeError where a rank is too large for its layer,
    ModelError where a module is of another kind.
    """
    layers = {}
    for key, module in modules.items():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ModelError(f"{key} is a {type(module).__name__}; low-rank layers go on Linear and Conv2d only.")
        layers[key] = LoraLayer(key, module, spec_of(key), seed=seed)
    for module in modules.values():
        module.requires_grad_(False)
    return LoraLayers(layers)


def _window(key: str, conv: nn.Conv2d) -> Window:
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ModelError(f"{key}: grouped convolutions and special padding take no low-rank layer. Leave it out.")
    return Window(tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation))


def _lengths(weight: Tensor, axis: Literal["output", "input"]) -> Tensor:
    """Euclidean length of each output's weights, [O, 1(, 1, 1)], or of each input's, [1, I(, 1, 1)]."""
    others = [index for index in range(weight.dim()) if index != (0 if axis == "output" else 1)]
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return lengths


def _load_layer(layer: LoraLayer, update: LowRank) -> None:
    if update.mid is not None:
        raise ModelError(f"{layer.key} has a Tucker core (lora_mid) in the file to go on from; those are not trained.")
    if (update.magnitude is None) != (layer.magnitude is None):
        raise ModelError(f"{layer.key}: the file to go on from and method.dora disagree about DoRA.")
    pairs = [("down", layer.down, update.down), ("up", layer.up, update.up)]
    if layer.magnitude is not None and update.magnitude is not None:
        if axis_of_magnitude(update.magnitude) != layer.spec.dora_axis:
            raise ModelError(
                f"{layer.key}: the file to go on from has DoRA lengths per {axis_of_magnitude(update.magnitude)}, this "
                f"recipe learns them per {layer.spec.dora_axis}. Set method.dora_axis to the file's."
            )
        pairs.append(("magnitude", layer.magnitude, update.magnitude))
    for name, parameter, value in pairs:
        if parameter.numel() != value.numel() or parameter.shape[0] != value.shape[0]:
            raise ModelError(
                f"{layer.key}.{name} is {list(value.shape)} in the file to go on from, but {list(parameter.shape)} "
                "in this recipe: another rank, or a base of another size."
            )
        parameter.copy_(value.reshape(parameter.shape))
    factor = update.alpha / layer.spec.rank / layer.scale
    if factor != 1.0:
        layer.up.mul_(factor)

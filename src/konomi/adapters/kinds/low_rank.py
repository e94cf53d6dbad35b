"""LoRA (Hu et al. 2021), LoCon's Tucker core, DoRA (Liu et al. 2024), rsLoRA (Kalajdzievski 2023):
two thin factors.

A trained layer replaces the `forward` of one Linear or Conv2d of the base and touches nothing
else: the base keeps its tree, its names and its weights, bit for bit. The factors are float32
whatever the base computes in.

Shapes: I input, O output features or channels, K kernel, R rank, B samples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.adapters.dropout import dropout, for_batch, keep_mask, keep_scale
from konomi.adapters.kinds.closed_form import fit_bias, precise
from konomi.adapters.kinds.kind import About, LayerUpdate
from konomi.adapters.kinds.low_rank_product import low_rank_conv, low_rank_linear
from konomi.adapters.kinds.magnitude import (
    axis_of_magnitude,
    change_of,
    check_magnitude,
    lengths_of,
)
from konomi.adapters.kinds.parts import SHARED, LayerError, alpha_of, bias_of, present, scalar
from konomi.adapters.kinds.window import window_of
from konomi.diffusion.random import Rng, stable_hash
from konomi.errors import ModelError, RecipeError
from konomi.hardware import storage_formats

_UP_BIAS = "lora_up.bias"
"""PEFT's `lora_B.bias`: part of the update, so its scale counts; `diff_b` stands for itself."""


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
    """Whose lengths: each output's weights (the paper, PEFT, diffusers) or each input's (A1111,
    LyCORIS' first)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 or self.rank_dropout > 0 or self.module_dropout > 0

    def layer(self, key: str, module: nn.Module, *, seed: int) -> "LoraLayer":
        """Raises RecipeError where the rank is too large for the module, ModelError where it takes
        no such layer.
        """
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ModelError(
                f"{key} is a {type(module).__name__}; low-rank layers go on Linear and Conv2d only."
            )
        return LoraLayer(key, module, self, seed=seed)


@dataclass(frozen=True, slots=True)
class LowRank:
    """dW = up @ down * alpha / R; LoCon's mid; DoRA's magnitude."""

    about: ClassVar[About] = About(
        name="lora",
        parts={
            "lora_down.weight": (2, 4),
            "lora_up.weight": (2, 4),
            "lora_mid.weight": (4,),
            _UP_BIAS: (1,),
        }
        | SHARED,
        complete=(frozenset({"lora_up.weight", "lora_down.weight"}),),
        spellings={
            "lora_A.weight": "lora_down.weight",
            "lora_B.weight": "lora_up.weight",
            "lora_A.default.weight": "lora_down.weight",
            "lora_B.default.weight": "lora_up.weight",
            "lora.down.weight": "lora_down.weight",
            "lora.up.weight": "lora_up.weight",
            "lora_linear_layer.down.weight": "lora_down.weight",
            "lora_linear_layer.up.weight": "lora_up.weight",
            "lora_B.bias": _UP_BIAS,
            "lora_magnitude_vector": "dora_scale",
            "lora_magnitude_vector.weight": "dora_scale",
        },
        peft_type="LORA",
        layer_spec=lambda rank: LoraSpec(rank, float(rank)),
    )
    whole: ClassVar[None] = None

    down: Tensor
    """[R, I] or [R, I, K, K]; with `mid` [R, I, 1, 1]."""
    up: Tensor
    """[O, R] or [O, R, 1, 1]."""
    alpha: float
    """Numerator of the scale; alpha = R means scale 1."""
    mid: Tensor | None = None
    """[R, R, K, K]."""
    magnitude: Tensor | None = None
    """DoRA: [O, 1(, 1, 1)] norms per output, or [1, I(, 1, 1)] norms per input."""
    bias: Tensor | None = None
    """db [O], given outright (PEFT's `lora_bias` with its scale multiplied in, `diff_b` of ComfyUI
    and LyCORIS)."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for a missing half, or halves that do not fit together."""
        halves = ("lora_down.weight", "lora_up.weight")
        for half, other in (halves, halves[::-1]):
            if other not in parts:
                missing = f"has no {other.split('.')[0]} beside it"
                raise LayerError(half if half in parts else "", missing)
        down, up = (parts[half] for half in halves)
        mid = parts.get("lora_mid.weight")
        rank = down.shape[0]
        if up.shape[1] != rank:
            raise LayerError(
                "lora_up.weight", f"has rank {up.shape[1]}; its lora_down has rank {rank}"
            )
        if mid is not None and (mid.dim() != 4 or tuple(mid.shape[:2]) != (rank, rank)):
            raise LayerError(
                "lora_mid.weight", f"has shape {list(mid.shape)}; [{rank}, {rank}, K, K] is needed"
            )
        if up.dim() == 4 and tuple(up.shape[2:]) != (1, 1):
            raise LayerError(
                "lora_up.weight", f"has a kernel of {list(up.shape[2:])}; it must be 1 x 1"
            )
        magnitude = parts.get("dora_scale")
        check_magnitude(magnitude, up.shape[0], down.shape[1])
        alpha = alpha_of(parts, rank)
        bias = bias_of(parts, up.shape[0])
        if _UP_BIAS in parts:
            if bias is not None:
                raise LayerError(
                    "diff_b", "stands beside a bias of lora_up; konomi cannot tell which is meant"
                )
            bias = bias_of(parts, up.shape[0], _UP_BIAS)
            bias = None if bias is None else bias * (alpha / rank)
        return cls(down, up, alpha, mid, magnitude, bias)

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        # A1111 before version 1.10 scaled by alpha / rank after taking the lengths, others before.
        update = self if self.magnitude is None else self.folded(None)
        return present(
            {
                "lora_down.weight": update.down,
                "lora_up.weight": update.up,
                "lora_mid.weight": update.mid,
                "alpha": scalar(update.alpha, update.down),
                "dora_scale": update.magnitude,
                "diff_b": update.bias,
            }
        )

    @property
    def scale(self) -> float:
        """alpha / R."""
        return self.alpha / self.down.shape[0]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def input_width(self) -> int:
        return self.down.shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        return change_of(self._product(), self.magnitude, weight)

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        return fit_bias(self.bias, bias)

    def difference(self) -> Tensor | None:
        """None for DoRA, whose lengths are those of W + dW."""
        if self.magnitude is not None:
            return None
        mid = None if self.mid is None else precise(self.mid)
        return replace(self, down=precise(self.down), up=precise(self.up), mid=mid)._product()

    def as_low_rank(self) -> Self:
        return self

    def norm(self) -> float:
        """Without building the product: tr(up^T up down down^T) is its square."""
        rank = self.rank
        down, up = self.down.reshape(rank, -1).double(), self.up.reshape(-1, rank).double()
        if self.mid is not None:
            down = torch.einsum(
                "rsk,si->rik", self.mid.reshape(rank, rank, -1).double(), down
            ).reshape(rank, -1)
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        return float(square.sqrt()) * abs(self.alpha) / rank

    def folded(self, dtype: torch.dtype | None) -> Self:
        """The same update with alpha = R. A half that would lose precision in its type is kept in
        float32.
        """
        rank = self.rank
        wanted = dtype or self.up.dtype
        exact = self.up.double() * (self.alpha / rank)
        up, down = exact.to(wanted), self.down.to(dtype or self.down.dtype)
        if self.alpha != rank and wanted == torch.float16:
            # Small scales push float16 into its subnormal range, where a few bits are left of the
            # eleven.
            error = (up.double() - exact).abs().max()
            if not float(error) <= float(exact.abs().max()) * 2**-11:
                up, down = exact.float(), down.float()
        magnitude = self.magnitude
        if magnitude is not None and dtype is not None:
            magnitude = magnitude.to(dtype)
        bias = self.bias if self.bias is None or dtype is None else self.bias.to(dtype)
        return replace(self, down=down, up=up, alpha=float(rank), magnitude=magnitude, bias=bias)

    def _product(self) -> Tensor:
        rank = self.rank
        up, down = self.up.flatten(1), self.down.flatten(1)
        if up.shape[1] != rank and self.mid is None:
            raise ModelError(
                f"its two matrices do not fit together: down has rank {rank}, up {up.shape[1]}"
            )
        if self.mid is not None:
            return torch.einsum("rskl,or,si->oikl", self.mid, up, down) * self.scale
        return (up @ down).reshape(up.shape[0], *self.down.shape[1:]) * self.scale


class LoraLayer(nn.Module):
    """The update of one layer. `down` [R, I(, K, K)], `up` [O, R(, 1, 1)] and, for DoRA,
    `magnitude` [O, 1(, 1, 1)] or [1, I(, 1, 1)].
    """

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
            self.window = window_of(key, base)
        limit = min(out_features, in_features * math.prod(kernel))
        if spec.rank > limit:
            raise RecipeError(
                f"the rank of {key} is {spec.rank}; this layer allows at most {limit}. Lower the "
                "rank that is set for such layers: method.rank, conv_rank or text_rank (in "
                "DreamArtist method.lora_rank)."
            )
        device = base.weight.device
        generator = torch.Generator().manual_seed(stable_hash("lora", seed, key) & (2**63 - 1))
        bound = 1.0 / math.sqrt(in_features * math.prod(kernel))
        down = torch.empty(spec.rank, in_features, *kernel).uniform_(
            -bound, bound, generator=generator
        )
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(
            torch.zeros(out_features, spec.rank, *[1 for _ in kernel], device=device)
        )
        self.magnitude = None
        if spec.dora:
            self.magnitude = nn.Parameter(lengths_of(base.weight.detach().float(), spec.dora_axis))

    @property
    def base(self) -> nn.Linear | nn.Conv2d:
        return self._base[0]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's answer with the update."""
        weight, bias = self.base.weight, self.base.bias
        gain = self._gain()
        if gain is not None and self.spec.dora_axis == "input":
            # (W + dW) diag(gain) x, in float32 like the other axis: a gain of 1.001 would be 1 in
            # bfloat16.
            x = (x * gain.view((-1,) if self.window is None else (-1, 1, 1))).to(x.dtype)
            gain = None
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        plain_bias = bias if gain is None else None
        if self.rng is not None and self.base.training:
            y = self._with_dropout(x, weight, plain_bias)
        elif self.window is None:
            y = low_rank_linear(x, weight, plain_bias, self.down, self.up, scale=self.scale)
        else:
            y = low_rank_conv(
                x, weight, plain_bias, self.down, self.up, self.window, scale=self.scale
            )
        if gain is None:
            return y
        # In float32: a gain of 1.001 would be 1 in bfloat16, and never learned.
        channels = (-1,) if self.window is None else (-1, 1, 1)
        scaled = y * gain.view(channels)
        return (scaled if bias is None else scaled + bias.view(channels)).to(y.dtype)

    def _gain(self) -> Tensor | None:
        """DoRA's factors: learned length / length of W + dW; no gradient through the latter
        (section 4.3).
        """
        if self.magnitude is None:
            return None
        with torch.no_grad():
            weight = self.base.weight.to(self.up.dtype)
            delta = (self.up.flatten(1) @ self.down.flatten(1)).view(weight.shape)
            lengths = lengths_of(weight + self.scale * delta, self.spec.dora_axis)
        return self.magnitude / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)

    def _with_dropout(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.rng is not None
        spec, rng = self.spec, for_batch(self.rng, x.shape[0])
        inputs = dropout(x, spec.dropout, rng.fork("dropout")) if spec.dropout > 0 else x
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        hidden = (
            F.linear(inputs, down) if self.window is None else self.window.convolve(inputs, down)
        )
        # R is the last axis of a linear layer's hidden state, the second of a convolution's.
        rank_shape = [1] * (x.dim() - 1)
        rank_shape[-1 if self.window is None else 0] = spec.rank
        if spec.rank_dropout > 0:
            keep = keep_mask(rank_shape, spec.rank_dropout, rng.fork("rank_dropout"))
            hidden = hidden * keep * keep_scale(spec.rank_dropout)
        if spec.module_dropout > 0:
            hidden = hidden * keep_mask(
                [1] * (x.dim() - 1), spec.module_dropout, rng.fork("module_dropout")
            )
        if self.window is None:
            plain = storage_formats.linear if storage_formats.is_cast(x, weight) else F.linear
            return plain(x, weight, bias) + F.linear(hidden, up) * self.scale
        return self.window.convolve(x, weight, bias) + F.conv2d(hidden, up) * self.scale

    def export(self) -> LowRank:
        """A float32 copy; alpha is such that alpha / R is this layer's scale."""
        return LowRank(
            down=self.down.detach().clone(),
            up=self.up.detach().clone(),
            alpha=self.scale * self.spec.rank,
            magnitude=None if self.magnitude is None else self.magnitude.detach().clone(),
        )

    @torch.no_grad()
    def load(self, update: LayerUpdate) -> None:
        """Raises ModelError where the update is of another kind, rank or shape."""
        found = update.as_low_rank()
        if found is None:
            raise ModelError(
                f"{self.key} is no LoRA in the file to go on from, but a {update.about.name}."
            )
        if found.mid is not None:
            raise ModelError(
                f"{self.key} has a Tucker core (lora_mid) in the file to go on from; those are not "
                "trained."
            )
        if (found.magnitude is None) != (self.magnitude is None):
            raise ModelError(
                f"{self.key}: the file to go on from and method.dora disagree about DoRA."
            )
        pairs = [("down", self.down, found.down), ("up", self.up, found.up)]
        if self.magnitude is not None and found.magnitude is not None:
            if axis_of_magnitude(found.magnitude) != self.spec.dora_axis:
                raise ModelError(
                    f"{self.key}: the file to go on from has DoRA lengths per "
                    f"{axis_of_magnitude(found.magnitude)}, this recipe learns them per "
                    f"{self.spec.dora_axis}. Set method.dora_axis to the file's."
                )
            pairs.append(("magnitude", self.magnitude, found.magnitude))
        for name, parameter, value in pairs:
            if parameter.numel() != value.numel() or parameter.shape[0] != value.shape[0]:
                raise ModelError(
                    f"{self.key}.{name} is {list(value.shape)} in the file to go on from, but "
                    f"{list(parameter.shape)} in this recipe: another rank, or a base of another "
                    "size."
                )
            parameter.copy_(value.reshape(parameter.shape))
        factor = found.alpha / self.spec.rank / self.scale
        if factor != 1.0:
            self.up.mul_(factor)

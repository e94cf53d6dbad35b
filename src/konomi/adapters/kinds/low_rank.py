"""LoRA (Hu et al. 2021), LoCon's Tucker core, DoRA (Liu et al. 2024), rsLoRA (Kalajdzievski 2023):
two thin factors.

A trained layer replaces the `forward` of one Linear or Conv2d of the base and touches nothing
else: the base keeps its tree, its names and its weights, bit for bit. The factors are float32
whatever the base computes in.

Shapes: I input, O output features or channels, K kernel, R rank, B samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.adapters.dropout import dropout, for_batch, keep_mask, keep_scale
from konomi.adapters.kinds.closed_form import fit_bias, precise
from konomi.adapters.kinds.dylora import DyloraSettings, first_ranks
from konomi.adapters.kinds.kind import About, LayerSettings, LayerUpdate, Training
from konomi.adapters.kinds.low_rank_product import low_rank_conv, low_rank_linear
from konomi.adapters.kinds.low_rank_start import first_factors
from konomi.adapters.kinds.magnitude import (
    change_of,
    check_magnitude,
    gain_of,
    lengths_of,
    load_lengths,
    with_gain,
)
from konomi.adapters.kinds.max_norm import shrink, shrinking
from konomi.adapters.kinds.module import check_rank, copy_into, generator_of, linear_or_conv
from konomi.adapters.kinds.nearest import nearest_low_rank
from konomi.adapters.kinds.parts import SHARED, LayerError, alpha_of, bias_of, present, scalar
from konomi.adapters.kinds.window import window_of
from konomi.diffusion.random import Rng
from konomi.errors import ModelError
from konomi.hardware import storage_formats

_UP_BIAS = "lora_up.bias"
"""PEFT's `lora_B.bias`: part of the update, so its scale counts; `diff_b` stands for itself."""


@dataclass(frozen=True, slots=True)
class LoraSpec(LayerSettings):
    """Settings of a layer that is trained as low rank."""

    unit: int = 0
    """DyLoRA: each sample is computed in a drawn number of ranks, a multiple of this; 0 for all."""

    @property
    def has_dropout(self) -> bool:
        return max(self.unit, self.dropout, self.rank_dropout, self.module_dropout) > 0

    def layer(self, key: str, module: nn.Module, *, seed: int) -> "LoraLayer":
        """Raises RecipeError where the rank is too large for the module, ModelError where it takes
        no such layer.
        """
        return LoraLayer(key, linear_or_conv(key, module), self, seed=seed)


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
        nearest=nearest_low_rank,
        training=Training(
            "lora",
            lambda settings: _spec(settings, unit=0),
            uses=frozenset(
                {
                    *("rank", "alpha", "scaling", "dora", "b_rate_ratio", "init"),
                    *("dropout", "rank_dropout", "module_dropout", "max_norm"),
                }
            ),
            b_factors=frozenset({"up"}),
        ),
        also_trained=(
            Training(
                "dylora",
                lambda settings: _spec(settings, unit=(settings.own or DyloraSettings()).unit),
                uses=frozenset(
                    {"rank", "alpha", "scaling", "b_rate_ratio", "dropout", "module_dropout"}
                ),
                settings=DyloraSettings,
                network_module="networks.dylora",
                b_factors=frozenset({"up"}),
            ),
        ),
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


def _spec(settings: LayerSettings, *, unit: int) -> LoraSpec:
    shared = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return LoraSpec(**shared, unit=min(unit, settings.rank))


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
        self.window = None
        if isinstance(base, nn.Conv2d):
            self.window = window_of(key, base)
        check_rank(key, spec.rank, base.weight)
        device = base.weight.device
        generator = generator_of("lora", seed, key)
        down, up = first_factors(spec.init, base.weight, spec.rank, self.scale, generator)
        self.down, self.up = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))
        self.first: tuple[Tensor, Tensor] | None = None
        if spec.init != "zero":
            self.first = (self.down.detach().clone(), self.up.detach().clone())
        self.magnitude = None
        if spec.dora:
            self.magnitude = nn.Parameter(lengths_of(base.weight.detach().float(), spec.dora_axis))

    @property
    def base(self) -> nn.Linear | nn.Conv2d:
        return self._base[0]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's answer with the update."""
        return with_gain(
            self._plain,
            x,
            self._gain(),
            self.base.bias,
            axis=self.spec.dora_axis,
            is_conv=self.window is not None,
        )

    def _plain(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Without DoRA's lengths."""
        weight = self.base.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if self.rng is not None and self.base.training:
            return self._with_dropout(x, weight, bias)
        down, up = self._factors()
        if self.window is None:
            return low_rank_linear(x, weight, bias, down, up, scale=self.scale)
        return low_rank_conv(x, weight, bias, down, up, self.window, scale=self.scale)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """A and B of what is learned; from a start that is not zero, of twice the rank: B A - B0 A0
        = B0 (A - A0) + (B - B0) A, which no rounding moves off zero.
        """
        if self.first is None:
            return self.down, self.up
        down, up = self.first
        return torch.cat([self.down - down, self.down]), torch.cat([up, self.up - up], dim=1)

    def _gain(self) -> Tensor | None:
        if self.magnitude is None:
            return None
        with torch.no_grad():
            weight = self.base.weight.to(self.up.dtype)
            down, up = self._factors()
            delta = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
            changed = weight + self.scale * delta
        return gain_of(self.magnitude, changed, self.spec.dora_axis)

    def _with_dropout(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.rng is not None
        spec, rng = self.spec, for_batch(self.rng, x.shape[0])
        inputs = dropout(x, spec.dropout, rng.fork("dropout")) if spec.dropout > 0 else x
        down, up = (factor.to(x.dtype) for factor in self._factors())
        hidden = (
            F.linear(inputs, down) if self.window is None else self.window.convolve(inputs, down)
        )
        # R is the last axis of a linear layer's hidden state, the second of a convolution's.
        rank_shape = [1] * (x.dim() - 1)
        rank_shape[-1 if self.window is None else 0] = down.shape[0]
        if spec.rank_dropout > 0:
            keep = keep_mask(rank_shape, spec.rank_dropout, rng.fork("rank_dropout"))
            hidden = hidden * keep * keep_scale(spec.rank_dropout)
        if spec.unit:
            hidden = hidden * first_ranks(rank_shape, spec.unit, rng.fork("dylora"))
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
        (down, up), by = self._factors(), self._shrinking()
        return LowRank(
            down=down.detach() * by,
            up=up.detach() * by,
            alpha=self.scale * down.shape[0],
            magnitude=None if self.magnitude is None else self.magnitude.detach().clone(),
        )

    def limit_norm(self) -> None:
        shrink((self.down, self.up), self._shrinking())

    def _shrinking(self) -> float:
        now = LowRank(self.down.detach(), self.up.detach(), self.scale * self.spec.rank)
        return shrinking(now.norm, self.spec.max_norm * (self.first is None), 2)

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
        load_lengths(self.key, self.magnitude, found.magnitude, self.spec.dora_axis)
        copy_into(f"{self.key}.down", self.down, found.down)
        copy_into(f"{self.key}.up", self.up, found.up)
        factor = found.alpha / self.spec.rank / self.scale
        if factor != 1.0:
            self.up.mul_(factor)

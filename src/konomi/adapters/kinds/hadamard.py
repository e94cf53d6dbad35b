"""LoHa: the element-wise product of two low-rank products (Hyeon-Woo et al. 2021, "FedPara").

Shapes: O output, I input, K kernel, R rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.adapters.kinds.change_layer import ChangeSpec
from konomi.adapters.kinds.change_product import Pullback, recomputed
from konomi.adapters.kinds.change_product import product as layer_product
from konomi.adapters.kinds.closed_form import fit_bias, product
from konomi.adapters.kinds.kind import About, LayerSettings, PeftForm, Training, not_available
from konomi.adapters.kinds.magnitude import change_of
from konomi.adapters.kinds.module import check_rank
from konomi.adapters.kinds.parts import (
    SHARED,
    LayerError,
    alpha_of,
    bias_of,
    check_core,
    peft_scale,
    present,
    scalar,
)
from konomi.adapters.kinds.window import Window

_FACTORS = ("w1_a", "w1_b", "w2_a", "w2_b")


@dataclass(frozen=True, slots=True)
class Hadamard:
    """dW = (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / R.

    With cores t1, t2 [R, R, K, K] the factors are [R, O] and [R, I], without [O, R] and [R, I K K].
    """

    about: ClassVar[About] = About(
        name="loha",
        parts={f"hada_{name}": (2,) for name in _FACTORS}
        | {"hada_t1": (4,), "hada_t2": (4,)}
        | SHARED,
        complete=(frozenset(f"hada_{name}" for name in _FACTORS),),
        peft_type="LOHA",
        peft=PeftForm(
            read=lambda update, table: replace(update, alpha=peft_scale(table) * update.rank),
            write=lambda layers: _to_peft(layers),
            settings=frozenset(
                {"r", "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d"}
            ),
            refused={"rank_pattern": {}, "alpha_pattern": {}},
        ),
        algo="loha",
        training=Training(
            "loha",
            lambda settings: ChangeSpec(
                "loha", settings, _start, structured=_thin, shortcut=_merged
            ),
            uses=frozenset(
                {
                    *("rank", "alpha", "scaling", "dora"),
                    *("dropout", "rank_dropout", "module_dropout", "max_norm"),
                }
            ),
        ),
    )
    whole: ClassVar[None] = None

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """db [O], given outright."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for factors that are missing or of different rank or size."""
        for name in _FACTORS:
            if f"hada_{name}" not in parts:
                raise LayerError("", f"has no matrix hada_{name}")
        w1_a, w1_b, w2_a, w2_b = (parts[f"hada_{name}"] for name in _FACTORS)
        t1, t2 = parts.get("hada_t1"), parts.get("hada_t2")
        if (t1 is None) != (t2 is None):
            raise LayerError("hada_t1" if t2 is None else "hada_t2", "has no counterpart")
        if t1 is not None:
            check_core(parts, "hada_t1", "hada_w1_a", "hada_w1_b")
            check_core(parts, "hada_t2", "hada_w2_a", "hada_w2_b")
        for letter, a, b in (("1", w1_a, w1_b), ("2", w2_a, w2_b)):
            inner = a.shape[1] if t1 is None else a.shape[0]
            if inner != b.shape[0]:
                raise LayerError(
                    f"hada_w{letter}_a", f"has rank {inner}; hada_w{letter}_b has {b.shape[0]}"
                )
        if w1_a.shape != w2_a.shape or w1_b.shape != w2_b.shape:
            raise LayerError("hada_w2_a", "and hada_w1_a belong to matrices of different size")
        alpha = alpha_of(parts, w1_b.shape[0])
        return cls(w1_a, w1_b, w2_a, w2_b, alpha, t1, t2, parts.get("dora_scale"), bias_of(parts))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        del norm
        found: dict[str, Tensor | None] = {
            f"hada_{name}": getattr(self, name) for name in (*_FACTORS, "t1", "t2")
        }
        found |= {
            "alpha": scalar(self.alpha, self.w1_a),
            "dora_scale": self.magnitude,
            "diff_b": self.bias,
        }
        return present(found)

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def input_width(self) -> int | None:
        # Without cores a convolution's I K K are one axis; the layers that are asked are linear.
        return self.w1_b.shape[1] if self.t1 is None else None

    def delta(self, weight: Tensor) -> Tensor:
        first = product(self.w1_a, self.w1_b, self.t1)
        change = first * product(self.w2_a, self.w2_b, self.t2) * (self.alpha / self.rank)
        return change_of(change, self.magnitude, weight)

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        return fit_bias(self.bias, bias)

    difference = as_low_rank = norm = not_available
    """Only the weight tells the shape of the change."""


def _start(
    key: str, module: nn.Linear | nn.Conv2d, settings: LayerSettings, generator: torch.Generator
) -> Hadamard:
    """One of the four factors is zero; the others are drawn as LyCORIS draws them."""
    weight, rank = module.weight, settings.rank
    check_rank(key, rank, weight)
    outputs, inputs = weight.shape[0], weight[0].numel()

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    return Hadamard(
        w1_a=normal(outputs, rank, std=0.1),
        w1_b=normal(rank, inputs, std=1.0),
        w2_a=torch.zeros(outputs, rank),
        w2_b=normal(rank, inputs, std=1.0),
        # Files and `delta` divide by the rank; alpha / sqrt(R) is meant where settings say so.
        alpha=settings.scale * rank,
    )


def _merged(
    update: Hadamard, weight: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Pullback]:
    """W + dW, and dL/dW' back to the four factors: d w1_a = (G * second) w1_b^T, and so on."""
    w1_a, w1_b, w2_a, w2_b = parameters
    scale = update.alpha / update.rank
    first, second = (w1_a * scale) @ w1_b, w2_a @ w2_b

    def pullback(grad: Tensor) -> tuple[Tensor, ...]:
        grad = grad.flatten(1)
        of_first = second.mul_(grad)
        of_second = first.mul_(grad)
        return (
            (of_first @ w1_b.t()).mul_(scale),
            (w1_a.t() @ of_first).mul_(scale),
            of_second @ w2_b.t(),
            w2_a.t() @ of_second,
        )

    return torch.addcmul(weight.flatten(1), first, second).view(weight.shape), pullback


def _thin(
    update: Hadamard, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None
) -> Tensor | None:
    """As a low-rank product of rank R^2, whose factors are the R^2 pairs of columns and of rows.

    dW has no gradient of its size then, which is N O I multiplications, and its making none of
    passes over the weight; each costs R^2 in place of R.
    """
    rank, (outputs, inputs) = update.rank, (update.w1_a.shape[0], update.w1_b.shape[1])
    rows = x.numel() // inputs
    if window is not None or update.t1 is not None:
        return None
    merged = rows * outputs * inputs + 8 * rank * outputs * inputs
    if 3 * rank**2 * (rows + 2) * (outputs + inputs) > 0.8 * merged:
        return None
    factors = (update.w1_a, update.w1_b, update.w2_a, update.w2_b)
    added = recomputed(partial(_pairs_product, update.alpha / rank), x, *factors)
    return layer_product(x, weight, bias, window).add_(added)


def _pairs_product(
    scale: float, x: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor
) -> Tensor:
    down = (w1_b[:, None] * w2_b[None]).flatten(0, 1)
    up = (w1_a[:, :, None] * w2_a[:, None] * scale).flatten(1)
    return F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))


def _to_peft(
    layers: Mapping[str, Hadamard],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The same tensors; PEFT has one rank and one alpha for all layers."""
    first = next(iter(layers.values()))
    for path, update in layers.items():
        if update.t1 is not None or update.magnitude is not None or update.bias is not None:
            raise LayerError(path, "has a Tucker core, DoRA lengths or a bias, which PEFT does not")
        if (update.rank, update.alpha) != (first.rank, first.alpha):
            raise LayerError(path, "has another rank or alpha than others; PEFT's LoHa has one")
    parts = {
        path: {f"hada_{name}": getattr(update, name) for name in _FACTORS}
        for path, update in layers.items()
    }
    return parts, {"r": first.rank, "alpha": first.alpha, "use_effective_conv2d": False}

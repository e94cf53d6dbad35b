"""LoKr: a Kronecker product (Yeh et al. 2023, "Navigating Text-To-Image Customization: From
LyCORIS ...").

Shapes: O output, I input, K kernel, R rank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from konomi.adapters.kinds.change_layer import ChangeSpec
from konomi.adapters.kinds.change_product import Pullback
from konomi.adapters.kinds.closed_form import fit_bias, product
from konomi.adapters.kinds.kind import About, LayerSettings, Training, not_available, tensors_of
from konomi.adapters.kinds.magnitude import change_of
from konomi.adapters.kinds.module import kaiming_uniform
from konomi.adapters.kinds.parts import (
    SHARED,
    LayerError,
    alpha_of,
    bias_of,
    check_core,
    present,
    scalar,
)
from konomi.config.bounds import STRICT
from konomi.errors import ModelError

_WHOLE = ("w1", "w2")
_FACTORS = ("w1_a", "w1_b", "w2_a", "w2_b")


@dataclass(frozen=True, slots=True, kw_only=True)
class LokrSettings:
    """What LoKr alone has."""

    __pydantic_config__ = STRICT

    factor: Annotated[int, Field(ge=-1, le=4096)] = -1
    """The size of the small factor: each side of a weight is divided by the largest number up to
    this that it can be divided by; -1: by the one nearest to its square root, which makes the
    smallest files."""
    decompose_both: bool = False
    """Make the small factor a product of two matrices of the rank too, where that is smaller."""
    full_matrix: bool = False
    """Keep the large factor whole whatever the rank is: a larger file that learns more."""
    tucker: bool = False
    """Of convolutions, give the kernel's cells a core of their own (Tucker decomposition)."""


@dataclass(frozen=True, slots=True)
class Kronecker:
    """dW = kron(w1, w2) * scale; each factor is full, a product a @ b, or (w2) a Tucker product
    with t2.
    """

    about: ClassVar[About] = About(
        name="lokr",
        parts={f"lokr_{name}": (2, 4) for name in _WHOLE}
        | {f"lokr_{name}": (2,) for name in _FACTORS}
        | {"lokr_t2": (4,)}
        | SHARED,
        complete=(frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"})),
        peft_type="LOKR",
        algo="lokr",
        training=Training(
            "lokr",
            lambda settings: ChangeSpec("lokr", settings, _start, shortcut=_merged),
            uses=frozenset(
                {
                    *("rank", "alpha", "scaling", "dora"),
                    *("dropout", "rank_dropout", "module_dropout", "max_norm"),
                }
            ),
            settings=LokrSettings,
        ),
    )
    whole: ClassVar[None] = None

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """db [O], given outright."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for factors that are missing, given twice or of different rank."""
        for factor in ("lokr_w1", "lokr_w2"):
            pair = {f"{factor}_a", f"{factor}_b"}
            if factor in parts:
                if parts.keys() & pair:
                    raise LayerError(factor, "is given twice, whole and factored")
            elif not pair <= parts.keys():
                raise LayerError("", f"has neither {factor} nor both of its factors")
            # The Tucker core of w2 joins axes 0 of both factors.
            elif not (factor == "lokr_w2" and "lokr_t2" in parts):
                inner = (parts[f"{factor}_a"].shape[1], parts[f"{factor}_b"].shape[0])
                if inner[0] != inner[1]:
                    raise LayerError(
                        f"{factor}_a", f"has rank {inner[0]}; {factor}_b has {inner[1]}"
                    )
        if "lokr_t2" in parts:
            if "lokr_w2_a" not in parts:
                raise LayerError("lokr_t2", "has no factors to join")
            check_core(parts, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
        tensors = {
            name.removeprefix("lokr_"): tensor
            for name, tensor in parts.items()
            if name.startswith("lokr_")
        }
        alpha = alpha_of(parts, 1) if "alpha" in parts else None
        return cls(**tensors, alpha=alpha, magnitude=parts.get("dora_scale"), bias=bias_of(parts))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        del norm
        names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        found: dict[str, Tensor | None] = {f"lokr_{name}": getattr(self, name) for name in names}
        like = next(tensor for tensor in found.values() if tensor is not None)
        found["alpha"] = None if self.alpha is None else scalar(self.alpha, like)
        return present(found | {"dora_scale": self.magnitude, "diff_b": self.bias})

    @property
    def rank(self) -> int | None:
        """Of the factor that is a product, the first one's if both are."""
        inner = (factor for factor in (self.w1_b, self.w2_b) if factor is not None)
        return next((factor.shape[0] for factor in inner), None)

    @property
    def input_width(self) -> int | None:
        """I is the product of both factors' inputs."""
        inputs = (
            (self.w1_b if self.w1 is None else self.w1),
            (self.w2_b if self.w2 is None else self.w2),
        )
        if inputs[0] is None or inputs[1] is None:
            return None
        return inputs[0].shape[1] * inputs[1].shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        first = _factor(self.w1, self.w1_a, self.w1_b, None)
        second = _factor(self.w2, self.w2_a, self.w2_b, self.t2)
        scale = self.alpha / self.rank if self.alpha is not None and self.rank else 1.0
        if second.dim() == 4:
            first = first[:, :, None, None]
        change = torch.kron(first, second.contiguous()) * scale
        return change_of(change, self.magnitude, weight)

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        return fit_bias(self.bias, bias)

    def norm(self) -> float:
        """The product of the factors' norms."""
        first = _factor(self.w1, self.w1_a, self.w1_b, None)
        second = _factor(self.w2, self.w2_a, self.w2_b, self.t2)
        scale = self.alpha / self.rank if self.alpha is not None and self.rank else 1.0
        return abs(scale) * float(first.double().norm() * second.double().norm())

    difference = as_low_rank = not_available
    """Only the weight tells the shape of the change."""


def _factor(full: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    if full is not None:
        return full
    if a is None or b is None:
        raise ModelError("a Kronecker factor is missing")
    return product(a, b, core)


def sizes_of_factors(size: int, factor: int) -> tuple[int, int]:
    """A side of a weight as (small, large), small x large = size, as LyCORIS divides it: by
    `factor` where that goes, else by the largest number up to it; -1: nearest to the root.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = next(number for number in range(most, 0, -1) if size % number == 0)
    return small, size // small


def _start(
    key: str, module: nn.Linear | nn.Conv2d, settings: LayerSettings, generator: torch.Generator
) -> Kronecker:
    """The large factor is zero, by one half of it where it is a product; the rest is drawn as
    LyCORIS draws it.
    """
    del key
    own: LokrSettings = settings.own or LokrSettings()
    weight, rank = module.weight, settings.rank
    kernel = tuple(weight.shape[2:])
    out_small, out_large = sizes_of_factors(weight.shape[0], own.factor)
    in_small, in_large = sizes_of_factors(weight.shape[1], own.factor)

    def drawn(*shape: int) -> Tensor:
        return kaiming_uniform(torch.empty(shape), generator)

    parts: dict[str, Tensor] = {}
    if own.full_matrix or rank >= max(out_large, in_large) / 2:
        parts["w2"] = torch.zeros(out_large, in_large, *kernel)
    elif own.tucker and math.prod(kernel) > 1:
        parts["t2"] = drawn(rank, rank, *kernel)
        parts["w2_a"] = drawn(rank, out_large)
        parts["w2_b"] = torch.zeros(rank, in_large)
    else:
        parts["w2_a"] = drawn(out_large, rank)
        parts["w2_b"] = torch.zeros(rank, in_large * math.prod(kernel))
    if own.decompose_both and not own.full_matrix and rank < max(out_small, in_small) / 2:
        parts |= {"w1_a": drawn(out_small, rank), "w1_b": drawn(rank, in_small)}
    else:
        parts["w1"] = drawn(out_small, in_small)
    # Both factors whole: nothing has the rank, and the scale is 1.
    is_whole = {"w1", "w2"} <= parts.keys()
    return Kronecker(**parts, alpha=float(rank) if is_whole else settings.scale * rank)


def _merged(
    update: Kronecker, weight: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Pullback]:
    """W + dW in one pass over the weight, and dL/dW' back to the factors: one rearranged copy of
    it, [w1's cells, w2's cells], times either factor is the gradient of the other.
    """
    names = tuple(tensors_of(update))
    with torch.enable_grad():
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        given: dict[str, Any] = dict(zip(names, leaves, strict=True))
        now = replace(update, **given)
        w1 = _factor(now.w1, now.w1_a, now.w1_b, None)
        w2 = _factor(now.w2, now.w2_a, now.w2_b, now.t2).flatten(1)
    scale = now.alpha / now.rank if now.alpha is not None and now.rank else 1.0
    first, second = w1.detach() * scale, w2.detach()
    (outer, blocks), (rows, columns) = first.shape, second.shape

    def pullback(grad: Tensor) -> tuple[Tensor, ...]:
        cells = (
            grad.reshape(outer, rows, blocks, columns)
            .transpose(1, 2)
            .reshape(outer * blocks, rows * columns)
        )
        of_first = (cells @ second.flatten()).mul_(scale).view(outer, blocks)
        of_second = (first.flatten() @ cells).view(rows, columns)
        return torch.autograd.grad([w1, w2], leaves, [of_first, of_second])

    divided = weight.reshape(outer, rows, blocks, columns)
    whole = torch.addcmul(divided, first[:, None, :, None], second[None, :, None, :])
    return whole.view(weight.shape), pullback

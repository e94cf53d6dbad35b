"""(IA)^3: rows or columns of a weight made larger or smaller (Liu et al. 2022).

Shapes: O output, I input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from konomi.adapters.kinds.change_layer import ChangeSpec
from konomi.adapters.kinds.change_product import product
from konomi.adapters.kinds.kind import About, LayerSettings, Training, not_available
from konomi.adapters.kinds.magnitude import with_gain
from konomi.adapters.kinds.parts import LayerError
from konomi.adapters.kinds.window import Window
from konomi.config.bounds import STRICT
from konomi.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ia3Settings:
    """What (IA)^3 alone has."""

    __pydantic_config__ = STRICT

    on_input: bool = False
    """Scale what a layer reads, not what it returns."""


@dataclass(frozen=True, slots=True)
class Rescale:
    """W' = W * (1 + weight), on output rows or input columns."""

    about: ClassVar[About] = About(
        name="ia3",
        parts={"weight": (1, 2, 3, 4), "on_input": ()},
        complete=(frozenset({"weight", "on_input"}),),
        peft_type="IA3",
        algo="ia3",
        training=Training(
            "ia3",
            lambda settings: ChangeSpec("ia3", settings, _start, structured=_scaled),
            uses=frozenset({"dropout", "rank_dropout", "module_dropout"}),
            settings=Ia3Settings,
            learning_rate=5e-3,
        ),
    )
    alpha: ClassVar[None] = None
    magnitude: ClassVar[None] = None
    bias: ClassVar[None] = None
    whole: ClassVar[None] = None
    rank: ClassVar[None] = None

    weight: Tensor
    on_input: bool

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError where the axis is not told."""
        if "weight" not in parts:
            raise LayerError("on_input", "has none of the tensors it belongs to")
        if "on_input" not in parts:
            raise LayerError("weight", "has no on_input beside it, so its axis is unknown")
        if parts["on_input"].numel() != 1:
            raise LayerError(
                "on_input", f"has shape {list(parts['on_input'].shape)}; it must be one boolean"
            )
        return cls(parts["weight"], bool(parts["on_input"].item()))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        del norm
        return {"weight": self.weight, "on_input": torch.tensor(self.on_input)}

    @property
    def input_width(self) -> int | None:
        return self.weight.numel() if self.on_input else None

    def delta(self, weight: Tensor) -> Tensor:
        axis = 1 if self.on_input else 0
        size = weight.shape[axis]
        if self.weight.numel() != size:
            side = "inputs" if self.on_input else "outputs"
            raise ModelError(f"it rescales {self.weight.numel()} {side}, this weight has {size}")
        shape = [1] * weight.dim()
        shape[axis] = size
        return weight * self.weight.reshape(shape)

    def bias_delta(self, bias: Tensor) -> None:
        del bias

    difference = as_low_rank = norm = not_available


def _start(
    key: str, module: nn.Linear | nn.Conv2d, settings: LayerSettings, generator: torch.Generator
) -> Rescale:
    """Nothing is scaled."""
    del key, generator
    on_input = (settings.own or Ia3Settings()).on_input
    size = module.weight.shape[1 if on_input else 0]
    # LyCORIS' files have the channels of a convolution on the second axis, whichever they are.
    shape = (size,) if module.weight.dim() == 2 else (1, size, 1, 1)
    return Rescale(torch.zeros(shape), on_input)


def _scaled(
    update: Rescale, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None
) -> Tensor:
    """What is read or returned is scaled, and no weight made."""
    return with_gain(
        lambda x, bias: product(x, weight, bias, window),
        x,
        1 + update.weight.flatten(),
        bias,
        axis="input" if update.on_input else "output",
        is_conv=window is not None,
    )

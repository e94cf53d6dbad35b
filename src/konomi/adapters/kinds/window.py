"""How a convolution's window moves: what any kind of update needs to stand in for a convolution of
the base.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konomi.errors import ModelError
from konomi.hardware.storage_formats import conv2d, is_cast


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution's window moves."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        compute = conv2d if is_cast(x, weight) else F.conv2d
        return compute(x, weight, bias, self.stride, self.padding, self.dilation)

    def is_point(self, weight: Tensor) -> bool:
        """A 1x1 convolution that is nothing but a matrix at every pixel."""
        return weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def grad_input(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        grad: Tensor = self._backward(grad_y, x, weight, [True, False, False])[0]
        return grad

    def grad_weight(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        grad: Tensor = self._backward(grad_y, x, weight, [False, True, False])[1]
        return grad

    def _backward(self, grad_y: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            grad_y,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0, 0],
            1,
            wanted,
        )


def window_of(key: str, conv: nn.Conv2d) -> Window:
    """Raises ModelError for grouped convolutions and padding by other values than zero."""
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ModelError(
            f"{key}: grouped convolutions and special padding take no low-rank layer. Leave it out."
        )
    return Window(tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation))

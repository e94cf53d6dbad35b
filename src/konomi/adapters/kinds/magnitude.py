"""DoRA (Liu et al. 2024): the learned length of each output's or each input's weights, beside any
factored update.

Shapes: O output, I input, K kernel. A magnitude is [O, 1(, 1, 1)] or [1, I(, 1, 1)].
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from konomi.adapters.kinds.closed_form import fit
from konomi.adapters.kinds.module import copy_into
from konomi.adapters.kinds.parts import LayerError
from konomi.errors import ModelError

Axis = Literal["output", "input"]


def axis_of_magnitude(magnitude: Tensor) -> Axis:
    """Whose lengths a DoRA magnitude holds, by its shape, as ComfyUI and Forge tell it: [1, I(, 1,
    1)] is per input; [O, 1(, 1, 1)], also of a square layer, and [O] are per output.
    """
    return "input" if magnitude.dim() >= 2 and magnitude.shape[0] == 1 else "output"


def per_output(magnitude: Tensor | None) -> bool:
    """Whether there are lengths per output, which A1111 takes for lengths per input."""
    return magnitude is not None and axis_of_magnitude(magnitude) == "output"


def change_of(update: Tensor, magnitude: Tensor | None, weight: Tensor) -> Tensor:
    """W' - W, of the weight's shape, for what a kind's factors make, [O, I(, K, K)] or [O, I K K].

    With a magnitude, each output (or input) of W + update is brought to its learned length.
    """
    change = fit(update, weight)
    return change if magnitude is None else _at_length(weight + change, magnitude) - weight


def lengths_of(weight: Tensor, axis: Axis) -> Tensor:
    """Euclidean length of each output's weights, [O, 1(, 1, 1)], or of each input's, [1, I(, 1,
    1)].
    """
    others = [index for index in range(weight.dim()) if index != (0 if axis == "output" else 1)]
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return lengths


def gain_of(magnitude: Tensor, changed: Tensor, axis: Axis) -> Tensor:
    """DoRA's factors: learned length / length of `changed`, W + dW; no gradient through the latter
    (section 4.3).
    """
    with torch.no_grad():
        lengths = lengths_of(changed, axis)
    return magnitude / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def with_gain(
    compute: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    *,
    axis: Axis,
    is_conv: bool,
) -> Tensor:
    """`compute(x, bias)`, with a layer's weight scaled by DoRA's factors; None: it is not. In
    float32, because a gain of 1.001 would be 1 in bfloat16, and never learned.
    """
    if gain is None:
        return compute(x, bias)
    channels = (-1, 1, 1) if is_conv else (-1,)
    if axis == "input":
        # (W + dW) diag(gain) x.
        return compute((x * gain.view(channels)).to(x.dtype), bias)
    y = compute(x, None)
    scaled = y * gain.view(channels)
    return (scaled if bias is None else scaled + bias.view(channels)).to(y.dtype)


def load_lengths(key: str, mine: nn.Parameter | None, found: Tensor | None, axis: Axis) -> None:
    """Of a file to go on from. Raises ModelError where it and the recipe disagree about DoRA."""
    if (found is None) != (mine is None):
        raise ModelError(f"{key}: the file to go on from and method.dora disagree about DoRA.")
    if mine is None or found is None:
        return
    if axis_of_magnitude(found) != axis:
        raise ModelError(
            f"{key}: the file to go on from has DoRA lengths per "
            f"{axis_of_magnitude(found)}, this recipe learns them per "
            f"{axis}. Set method.dora_axis to the file's."
        )
    copy_into(f"{key}.magnitude", mine, found)


def check_magnitude(magnitude: Tensor | None, outputs: int, inputs: int) -> None:
    """Raises LayerError where it belongs to a layer of another size."""
    if magnitude is None:
        return
    per_output = magnitude.numel() == outputs and magnitude.shape[0] == outputs
    per_input = magnitude.dim() >= 2 and magnitude.numel() == inputs == magnitude.shape[1]
    if not per_output and not per_input:
        raise LayerError(
            "dora_scale",
            f"has shape {list(magnitude.shape)}; [{outputs}, 1] or [1, {inputs}] is needed",
        )


def _at_length(direction: Tensor, magnitude: Tensor) -> Tensor:
    outputs, inputs = direction.shape[:2]
    ones = [1] * (direction.dim() - 2)
    if magnitude.numel() == outputs and magnitude.shape[0] == outputs:
        lengths: Tensor = direction.flatten(1).norm(dim=1).view(outputs, 1, *ones)
    elif magnitude.numel() == inputs and magnitude.shape[0] == 1:
        lengths = direction.transpose(0, 1).flatten(1).norm(dim=1).view(1, inputs, *ones)
    else:
        raise ModelError(
            f"DoRA magnitude {list(magnitude.shape)} does not fit a weight {list(direction.shape)}"
        )
    # A row of zeros has no direction: it stays zero rather than becoming NaN.
    return direction * (
        magnitude.reshape(lengths.shape) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    )

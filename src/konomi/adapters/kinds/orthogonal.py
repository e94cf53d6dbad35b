"""OFT (Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"): blocks of
a layer's channels are rotated, lengths and angles between them stay.

kohya and LyCORIS rotate outputs, PEFT inputs; neither is the other, and a file says by its names
which it is.

Shapes: N blocks of b x b, O output, I input, K kernel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from konomi.adapters.kinds.change_product import Pullback
from konomi.adapters.kinds.kind import About, PeftForm, not_available, tensors_of
from konomi.adapters.kinds.parts import LayerError, alpha_of, present, scalar
from konomi.adapters.kinds.rotation import (
    Side,
    as_rows,
    bounded,
    cayley_change,
    from_rows,
    neumann_change,
    rescaled,
    skew,
    training,
    turned,
)
from konomi.errors import FileFormatError


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """W' = diag(rescale) R W with R = C(-Q), Q = blocks - blocks^T, on outputs; W' = W R^T on
    inputs.
    """

    about: ClassVar[About] = About(
        name="oft",
        parts={"oft_blocks": (3,), "oft_R": (2,), "rescale": (1, 2, 4), "alpha": ()},
        complete=(frozenset({"oft_blocks"}), frozenset({"oft_R"})),
        spellings={"oft_R.weight": "oft_R", "oft_R.default.weight": "oft_R"},
        peft_type="OFT",
        peft=PeftForm(
            lambda update, table: _from_peft(update, table),
            lambda layers: _to_peft(layers),
            settings=frozenset(
                {
                    *("oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms"),
                    *("block_share", "module_dropout", "eps"),
                }
            ),
            refused={"coft": False},
        ),
        algo="diag-oft",
        training=training(
            "oft",
            lambda *parts: Orthogonal(*parts),
            lambda *size: _zeros(*size),
            lambda *layer: _merged(*layer),
        ),
    )
    alpha: ClassVar[None] = None
    magnitude: ClassVar[None] = None
    bias: ClassVar[None] = None
    whole: ClassVar[None] = None
    rank: ClassVar[None] = None

    blocks: Tensor
    """[N, b, b], one block for all where PEFT's `block_share` was set."""
    constraint: float = 0.0
    """The norm of Q is kept below this times O; 0 for no bound. kohya's and LyCORIS' `alpha`."""
    rescale: Tensor | None = None
    """[O, 1(, 1, 1)], a learned length of each output."""
    side: Side = "output"
    terms: int = 0
    """Of PEFT's series in place of the inverse; 0 for the inverse."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for blocks that are not square, or given twice."""
        if "oft_R" in parts:
            for other in ("oft_blocks", "rescale", "alpha"):
                if other in parts:
                    raise LayerError(other, "stands beside PEFT's oft_R, which has none")
            return cls(_unpacked(parts["oft_R"]), side="input")
        if "oft_blocks" not in parts:
            raise LayerError("rescale", "has no oft_blocks beside it")
        blocks = parts["oft_blocks"]
        check_blocks(blocks, "oft_blocks", parts.get("rescale"))
        return cls(blocks, alpha_of(parts, 0), parts.get("rescale"))

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        """Raises FileFormatError for rotated inputs, which only PEFT has."""
        del norm
        if self.side == "input":
            raise FileFormatError(
                "a layer rotates its inputs (PEFT's OFT), which this format does not hold: kohya's "
                "and LyCORIS' OFT rotates outputs. Convert with --base BASE."
            )
        return present(
            {
                "oft_blocks": self.blocks,
                "rescale": self.rescale,
                "alpha": scalar(self.constraint, self.blocks),
            }
        )

    @property
    def input_width(self) -> int | None:
        # Convolutions are turned over I K K; the layers that are asked are linear.
        blocks, size = self.blocks.shape[:2]
        return blocks * size if self.side == "input" and blocks > 1 else None

    def delta(self, weight: Tensor) -> Tensor:
        q = bounded(skew(self.blocks), self.constraint * weight.shape[0])
        change = neumann_change(q, self.terms) if self.terms else cayley_change(-q)
        turn = turned(change, as_rows(weight, self.side))
        return rescaled(from_rows(turn, weight, self.side), self.rescale, weight)

    def bias_delta(self, bias: Tensor) -> None:
        del bias

    difference = as_low_rank = norm = not_available
    """The change is the weight's own, turned."""

    def packed(self) -> Tensor:
        """[N, b (b - 1) / 2], the upper triangle of Q, as PEFT keeps it."""
        size = self.blocks.shape[1]
        rows, columns = torch.triu_indices(size, size, offset=1)
        return skew(self.blocks)[:, rows, columns]


def _zeros(width: int, wanted: int) -> Tensor | None:
    """Blocks of no rotation, of the largest size up to `wanted` that divides a width; None where
    that is 1. The size is not larger than the number of blocks: LyCORIS loads no others.
    """
    sizes = range(min(wanted, math.isqrt(width)), 1, -1)
    size = next((size for size in sizes if width % size == 0), None)
    return None if size is None else torch.zeros(width // size, size, size)


def _merged(
    update: Orthogonal, weight: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Pullback]:
    """R W in one pass over the weight, and dL/dW' back to the blocks: with M = (I + Q)^-1 the
    rotation is 2 M - I, and dL/dQ = -2 M^T dL/dR M^T.
    """
    blocks, *others = parameters
    if others or update.constraint or update.terms or update.side == "input":
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            given: dict[str, Any] = dict(zip(tensors_of(update), leaves, strict=True))
            change = replace(update, **given).delta(weight)
        return weight + change.detach(), partial(torch.autograd.grad, change, leaves)
    count, size = blocks.shape[:2]
    eye = torch.eye(size, device=blocks.device)
    inverse = torch.linalg.inv_ex(eye + skew(blocks.detach())).inverse
    rows = weight.reshape(count, size, -1)

    def pullback(grad: Tensor) -> tuple[Tensor]:
        of_turn = grad.reshape(count, size, -1) @ rows.transpose(1, 2)
        of_skew = inverse.transpose(1, 2) @ of_turn @ inverse.transpose(1, 2)
        return (2 * (of_skew.transpose(1, 2) - of_skew),)

    return torch.bmm(2 * inverse - eye, rows).view(weight.shape), pullback


def check_blocks(blocks: Tensor, name: str, rescale: Tensor | None) -> None:
    """Raises LayerError where blocks [..., N, b, b] are not square, or there is not one factor for
    each channel.
    """
    if blocks.shape[-1] != blocks.shape[-2]:
        raise LayerError(name, f"has shape {list(blocks.shape)}; its blocks must be square")
    width = blocks.shape[-3] * blocks.shape[-1]
    if rescale is not None and rescale.numel() != width:
        raise LayerError(
            "rescale", f"has shape {list(rescale.shape)}; one factor for each of {width} is needed"
        )


def _unpacked(packed: Tensor) -> Tensor:
    """PEFT's triangles as blocks A with A - A^T = Q."""
    count = packed.shape[1]
    size = (1 + int((1 + 8 * count) ** 0.5 + 0.5)) // 2
    if size * (size - 1) // 2 != count:
        raise LayerError("oft_R", f"has {count} numbers a block, which is no triangle of a matrix")
    rows, columns = torch.triu_indices(size, size, offset=1)
    blocks = packed.new_zeros(packed.shape[0], size, size)
    blocks[:, rows, columns] = packed
    return blocks


def _from_peft(update: Orthogonal, table: Mapping[str, Any]) -> Orthogonal:
    series = table.get("use_cayley_neumann", True)
    terms = table.get("num_cayley_neumann_terms", 5) if series else 0
    if type(terms) is not int or not 0 <= terms <= 100:
        raise LayerError("", f"has {str(terms)[:40]} terms of the Cayley series; 0 to 100 are read")
    return replace(update, side="input", terms=terms)


def _to_peft(
    layers: Mapping[str, Orthogonal],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """PEFT takes one block size for all layers, and of each layer the divisor next to it."""
    terms = {update.terms for update in layers.values()}
    size = max(update.blocks.shape[1] for update in layers.values())
    for path, update in layers.items():
        if update.side == "output":
            raise LayerError(path, "rotates outputs (kohya's OFT), and PEFT's OFT rotates inputs")
        if update.rescale is not None or update.constraint or len(terms) > 1:
            raise LayerError(path, "has a bound or lengths, which PEFT's OFT has not")
        count, own = update.blocks.shape[:2]
        if own != nearest_divisor(count * own, size):
            raise LayerError(
                path, f"has blocks of {own}, which PEFT would not choose beside {size}"
            )
    own_terms = terms.pop()
    return {path: {"oft_R.weight": update.packed()} for path, update in layers.items()}, {
        "r": 0,
        "oft_block_size": size,
        "use_cayley_neumann": own_terms > 0,
        "num_cayley_neumann_terms": own_terms or 5,
        "block_share": False,
        "coft": False,
        "module_dropout": 0.0,
    }


def nearest_divisor(width: int, wanted: int) -> int:
    """The divisor of a width next to `wanted`, the smaller of two, as PEFT adjusts block sizes."""
    divisors = [size for size in range(1, width + 1) if width % size == 0]
    return min(divisors, key=lambda size: (abs(size - wanted), size))

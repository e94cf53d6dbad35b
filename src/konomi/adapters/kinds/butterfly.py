"""BOFT (Liu et al. 2023, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization"):
several rotations of blocks in turn, between which channels change places, so that every channel
comes to meet every other one.

kohya's LyCORIS rotates outputs, PEFT inputs, as with OFT.

Shapes: M stages, N blocks of b x b, O output, I input, K kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from konomi.adapters.kinds.kind import About, PeftForm, not_available
from konomi.adapters.kinds.orthogonal import check_blocks
from konomi.adapters.kinds.parts import LayerError, alpha_of, present, scalar
from konomi.adapters.kinds.rotation import (
    Side,
    as_rows,
    bounded,
    cayley_change,
    check_width,
    from_rows,
    rescaled,
    skew,
    training,
    turned,
)
from konomi.errors import FileFormatError


@dataclass(frozen=True, slots=True)
class Butterfly:
    """W' = diag(rescale) B_M ... B_1 W on outputs, W' = W (B_M ... B_1)^T on inputs.

    B_m = P_m^T diag(C(Q_1), ..., C(Q_N)) P_m with Q = blocks - blocks^T. P_m takes the halves of
    every 2^(m - 1) b channels side by side: one by one on outputs, by b / 2 on inputs.
    """

    about: ClassVar[About] = About(
        name="boft",
        parts={
            "oft_blocks": (4,),
            "boft_R": (4,),
            "boft_s": (2,),
            "rescale": (1, 2, 4),
            "alpha": (),
        },
        complete=(frozenset({"oft_blocks"}), frozenset({"boft_R"})),
        peft_type="BOFT",
        peft=PeftForm(
            lambda update, table: update,
            lambda layers: _to_peft(layers),
            settings=frozenset(
                {
                    *("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"),
                    "boft_dropout",
                }
            ),
        ),
        algo="boft",
        training=training("boft", lambda *parts: Butterfly(*parts), lambda *size: _zeros(*size)),
        at_strength=lambda update, strength: replace(update, strength=strength),
    )
    alpha: ClassVar[None] = None
    magnitude: ClassVar[None] = None
    bias: ClassVar[None] = None
    whole: ClassVar[None] = None
    rank: ClassVar[None] = None

    blocks: Tensor
    """[M, N, b, b]."""
    constraint: float = 0.0
    """The norm of Q is kept below this times O; 0 for no bound. LyCORIS' `alpha`."""
    rescale: Tensor | None = None
    """[O, 1(, 1, 1)], a learned length of each output."""
    side: Side = "output"
    strength: float = 1.0
    """Scales each B_m - I, and rescale - 1, as LyCORIS does: a mean of the weights before and after
    would be no product of rotations."""

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Raises LayerError for blocks that are not square, given twice, or too many stages."""
        if "boft_R" in parts:
            for other in ("oft_blocks", "rescale", "alpha"):
                if other in parts:
                    raise LayerError(other, "stands beside PEFT's boft_R, which has none")
            check_blocks(parts["boft_R"], "boft_R", None)
            # PEFT: (I - S)(I + S)^-1 of S = (A - A^T) / 2.
            blocks, side = -0.5 * parts["boft_R"], "input"
            found = cls(blocks, 0.0, parts.get("boft_s"), "input")
        elif "oft_blocks" in parts:
            blocks = parts["oft_blocks"]
            check_blocks(blocks, "oft_blocks", parts.get("rescale"))
            found, side = cls(blocks, alpha_of(parts, 0), parts.get("rescale")), "output"
        else:
            raise LayerError("rescale", "has no oft_blocks beside it")
        stages, count, size = blocks.shape[:3]
        if stages > 1 and (size % 2 or count % 2 ** (stages - 1)):
            name = "boft_R" if side == "input" else "oft_blocks"
            raise LayerError(
                name, f"has {stages} stages, which {count} blocks of {size} channels do not allow"
            )
        return found

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        """Raises FileFormatError for rotated inputs, which only PEFT has."""
        del norm
        if self.side == "input":
            raise FileFormatError(
                "a layer rotates its inputs (PEFT's BOFT), which this format does not hold: "
                "LyCORIS' BOFT rotates outputs. Convert with --base BASE."
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
        count, size = self.blocks.shape[1:3]
        return count * size if self.side == "input" else None

    def delta(self, weight: Tensor) -> Tensor:
        q = bounded(skew(self.blocks), self.constraint * weight.shape[0])
        changes = cayley_change(q) * self.strength
        rows = as_rows(weight, self.side)
        check_width(self.blocks.shape[1] * self.blocks.shape[2], rows)
        total: Tensor | None = None
        for stage, change in enumerate(changes):
            before = rows if total is None else rows + total
            step = self._parted(turned(change, self._joined(before, stage)), stage)
            total = step if total is None else total + step
        assert total is not None
        rescale = self.rescale
        if rescale is not None and self.strength != 1:
            rescale = 1 + self.strength * (rescale - 1)
        return rescaled(from_rows(total, weight, self.side), rescale, weight)

    def bias_delta(self, bias: Tensor) -> None:
        del bias

    difference = as_low_rank = norm = not_available
    """The change is the weight's own, turned."""

    def _joined(self, rows: Tensor, stage: int) -> Tensor:
        """P_m: rows in the order in which the blocks of a stage take them."""
        return self._swapped(rows, stage, halves_first=True)

    def _parted(self, rows: Tensor, stage: int) -> Tensor:
        """P_m^T, the way back."""
        return self._swapped(rows, stage, halves_first=False)

    def _swapped(self, rows: Tensor, stage: int, *, halves_first: bool) -> Tensor:
        count = 2**stage
        if self.side == "input" and count == 1:
            return rows
        each = self.blocks.shape[2] // 2
        if self.side == "output":
            count, each = count * each, 1
        axes = (2, count) if halves_first else (count, 2)
        return rows.reshape(-1, *axes, each, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _zeros(width: int, wanted: int) -> Tensor | None:
    """Blocks of no rotation, of the largest even size up to `wanted` of which a power of 2 fill a
    width, as LyCORIS chooses it, in as many stages as let every channel meet every other one; None
    where there is none.
    """
    sizes = range(min(wanted, width) // 2 * 2, 1, -2)
    fitting = (size for size in sizes if width % size == 0 and (width // size).bit_count() == 1)
    size = next(fitting, None)
    if size is None:
        return None
    count = width // size
    return torch.zeros(count.bit_length(), count, size, size)


def _to_peft(
    layers: Mapping[str, Butterfly],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    shapes = {(update.blocks.shape[0], update.blocks.shape[2]) for update in layers.values()}
    found = {}
    for path, update in layers.items():
        if update.side == "output":
            raise LayerError(path, "rotates outputs (LyCORIS' BOFT), and PEFT's rotates inputs")
        if update.constraint or len(shapes) > 1:
            raise LayerError(path, "has a bound, or blocks of its own, which PEFT's BOFT has not")
        if update.rescale is None:
            raise LayerError(path, "has no lengths, which PEFT's BOFT always has")
        found[path] = {
            "boft_R": -skew(update.blocks),
            "boft_s": update.rescale.reshape(-1, 1).contiguous(),
        }
    stages, size = shapes.pop()
    return found, {
        "boft_block_size": size,
        "boft_block_num": 0,
        "boft_n_butterfly_factor": stages,
        "boft_dropout": 0.0,
    }

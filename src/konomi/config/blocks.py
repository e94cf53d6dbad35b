"""Settings that differ from block to block of a model."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from konomi.config.bounds import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRates:
    """Learning rates by block."""

    __pydantic_config__ = STRICT

    rate_factors: dict[str, Annotated[float, Field(ge=0, le=1000)]] = field(default_factory=dict)
    """Factors on the learning rate, by block or by any other choice of layers in the notation of
    `targets`; of several that fit, the last counts: `"IN00-IN05" = 0.5`, `"MID" = 0`. 0 leaves the
    layers untrained. On the command line `IN00-IN05:0.5,MID:0`."""
    rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Lower the learning rate towards the input: each block has this factor once more than the
    block after it (layer-wise decay; 0.9). 1: the same rate for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraBlocks(BlockRates):
    """Ranks, scales and learning rates by block."""

    __pydantic_config__ = STRICT

    ranks: dict[str, Annotated[int, Field(ge=0, le=1024)]] = field(default_factory=dict)
    """Ranks in place of `rank`, by block or by any other choice of layers in the notation of
    `targets`; of several that fit, the last counts: `"OUT*" = 16`, `"IN00:conv" = 4`. A block alone
    means its linear layers (sd-scripts' `block_dims`), with `:conv` its convolutions
    (`conv_block_dims`). 0 leaves the layers out. On the command line `OUT*:16,IN00:conv:4`."""
    alphas: dict[str, Annotated[float, Field(gt=0, le=1024)]] = field(default_factory=dict)
    """Alphas in place of `alpha`, in the same way (sd-scripts' `block_alphas`)."""

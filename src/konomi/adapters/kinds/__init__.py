"""Kinds of update, one file each: what a layer's update holds, what it adds to a weight in closed
form, its tensors in files, and how it is trained where konomi trains it. All are reached through
`KINDS`; nothing else lists them.
"""

from konomi.adapters.kinds.butterfly import Butterfly
from konomi.adapters.kinds.difference import Difference
from konomi.adapters.kinds.generalized import Generalized
from konomi.adapters.kinds.hadamard import Hadamard
from konomi.adapters.kinds.kind import (
    About,
    Kind,
    LayerSettings,
    LayerSpec,
    LayerUpdate,
    TrainableLayer,
    Training,
    tensors_of,
)
from konomi.adapters.kinds.kronecker import Kronecker
from konomi.adapters.kinds.low_rank import LowRank
from konomi.adapters.kinds.orthogonal import Orthogonal
from konomi.adapters.kinds.replacement import Replacement
from konomi.adapters.kinds.rescale import Rescale

__all__ = [
    "KINDS",
    "About",
    "Butterfly",
    "Difference",
    "Generalized",
    "Hadamard",
    "Kind",
    "Kronecker",
    "LayerSettings",
    "LayerSpec",
    "LayerUpdate",
    "LowRank",
    "Orthogonal",
    "Replacement",
    "Rescale",
    "TrainableLayer",
    "Training",
    "tensors_of",
]

KINDS: tuple[Kind, ...] = (
    LowRank,
    Hadamard,
    Kronecker,
    Difference,
    Rescale,
    Orthogonal,
    Butterfly,
    Generalized,
    Replacement,
)
"""Every kind that konomi knows. Where tensors of several kinds lie together, the first one's error
is told."""

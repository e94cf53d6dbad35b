"""One weight that answers as several do, each on its own text: Custom Diffusion's merge in closed
form (Kumari et al. 2022, section 3.2), in float64.

    W' = argmin |(W' - W) C_reg^T|  with  W' t = W_i t  for every target state t of every concept i
    W' = W + (V*^T - W T^T) (d T^T)^-1 d,   d = T C^-1,   C = K^T K

Shapes: R regularisation states, M target states, I width of a text state, O output of the layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from konomi.adapters.kinds import Replacement
from konomi.errors import ModelError

RIDGE = 1e-6
"""Added to C's diagonal, in shares of its mean: where fewer states were seen than they are wide, C
alone has no inverse. The constraint holds whatever C is."""
DISTINCT = 1e-6
"""Targets nearer to one another than this share of the farthest direction are one target."""
TOLERANCE = 1e-4
"""How far, in shares of the largest wanted answer, the merged weight may miss a target."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a merged layer has to do, the same for all layers; solved once."""

    targets_MI: Tensor
    solver_MI: Tensor
    """(d T^T)^-1 d."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The merged layers, and how well they do."""

    layers: dict[str, Replacement]
    largest_error: float
    """Of all targets, in shares of the largest answer wanted in their layer."""


def constraints(regularisation_RI: Tensor, targets_MI: Tensor) -> Constraints:
    """What depends on the text alone. Both are float64."""
    width = targets_MI.shape[1]
    c_II = regularisation_RI.T @ regularisation_RI
    c_II = c_II + torch.eye(width, dtype=c_II.dtype) * (RIDGE * c_II.diagonal().mean())
    d_MI = torch.linalg.solve(c_II, targets_MI.T).T
    gram_MM = d_MI @ targets_MI.T
    # Prompts that begin alike share states: the pseudo-inverse takes what is said twice once.
    solver_MI = torch.linalg.pinv(gram_MM, hermitian=True, rtol=DISTINCT**2) @ d_MI
    return Constraints(targets_MI, solver_MI)


def merge_layer(weight_OI: Tensor, wanted_MO: Tensor, given: Constraints) -> Tensor:
    """W' [O, I] for W and the answers V* that its targets should get, all float64."""
    missing_OM = wanted_MO.T - weight_OI @ given.targets_MI.T
    return weight_OI + missing_OM @ given.solver_MI


def merge(
    layers: Sequence[Mapping[str, Replacement]],
    targets: Sequence[Tensor],
    regularisation_RI: Tensor,
) -> Merged:
    """Merge the layers of several concepts, each with origins, so that each keeps its answers on
    its own targets.

    Args:
        layers: of each concept, canonical key -> layer; where one lacks a layer, it answers there
            as the base does.
        targets: of each concept, the text states [M_i, I] on which its answers count.
        regularisation_RI: text states of ordinary captions, where the base's answers should change
            least.

    Raises ModelError where the targets contradict one another.
    """
    given = constraints(regularisation_RI.double(), torch.cat(list(targets)).double())
    merged: dict[str, Replacement] = {}
    largest = 0.0
    for key in dict.fromkeys(key for concept in layers for key in concept):
        origin = next(concept[key].origin for concept in layers if key in concept)
        assert origin is not None
        weights = [concept[key].weight if key in concept else origin for concept in layers]
        wanted_MO = torch.cat(
            [t.double() @ w.double().T for t, w in zip(targets, weights, strict=True)]
        )
        # Rounded before it is measured: what is written has to keep the constraint.
        weight_OI = merge_layer(origin.double(), wanted_MO, given).float()
        error = (
            given.targets_MI @ weight_OI.double().T - wanted_MO
        ).abs().max() / wanted_MO.abs().max()
        largest = max(largest, float(error))
        if not largest <= TOLERANCE:
            raise ModelError(
                f"{key}: the concepts need different outputs for the same text (off by "
                f"{float(error):.1%}), so no weight satisfies both. Give each a prompt with its "
                "own word first."
            )
        merged[key] = Replacement(weight_OI, origin)
    return Merged(merged, largest)

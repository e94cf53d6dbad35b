"""How a picture is drawn: Gram matrices of a network's early layers.

Gatys, Ecker & Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks", section 2.2,
with the channels' means taken out. That early layers tell drawing styles apart, and features of the
whole picture less so, is measured in docs/notes.md. Shapes: N pictures, C channels, P positions, G
entries of all matrices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_WIDEST = 256
"""Channels that are compared; of more so many, evenly chosen. Of a thousand channels the matrices
of one picture would take 8 MB."""


def gram(layers: Sequence[Tensor]) -> Tensor:
    """[N, G] of layers [N, C, P]: of each the covariance of its channels over positions, as a unit
    vector; all layers count the same."""
    return torch.cat([functional.normalize(_covariance(layer), dim=1) for layer in layers], dim=1)


def _covariance(layer_NCP: Tensor) -> Tensor:
    """[N, C * C]."""
    channels = layer_NCP.shape[1]
    if channels > _WIDEST:
        chosen = torch.linspace(0, channels - 1, _WIDEST).round().long()
        layer_NCP = layer_NCP[:, chosen.to(layer_NCP.device)]
    centred_NCP = (layer_NCP - layer_NCP.mean(2, keepdim=True)).float()
    return (centred_NCP @ centred_NCP.transpose(1, 2)).flatten(1)

"""Copies: pictures that are a training picture once more.

A picture counts as a copy of a training picture where both agree:

- features: it is nearer to the training picture than any other training picture is, and than the
  base's own picture of the same prompt and noise, by a margin (Somepalli et al. 2023, "Diffusion
  Art or Digital Forgery?", section 3; Carlini et al. 2023, "Extracting Training Data from
  Diffusion Models", section 4.2, who compare with the nearest others as well);
- pixels: laid over each other, mirrored or moved a little, they correlate.

Where the user has SSCD (Pizzi et al. 2022), which was trained to find copies, its cosine decides
alone.
Shapes: N drawn pictures, T training pictures, D feature width, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from konomi.evaluation.encoders.encoder import ImageEncoder
from konomi.evaluation.pictures import Material, Place
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.scorer import Need, Scores

NEAR = 0.5
"""Share of the way from what is usual to an identical picture that features must go. Calibrated
on runs that were made to memorise and ordinary ones: docs/notes.md."""
ALIGNED = 0.8
"""Correlation of aligned pixels from which two pictures are laid over each other. Calibrated the
same way."""
_SIDE, _WINDOW = 32, 24
"""Pictures are compared at this many pixels a side, the middle window of one anywhere in the
other."""
_NEAREST = 3
"""Of all training pictures so many, the nearest by features, are laid over a picture."""


@dataclass(frozen=True, slots=True)
class Match:
    """A drawn picture and the training picture that it is nearest to."""

    training: int
    """Which of the training pictures."""
    similarity: float
    """Cosine of their features."""
    usual: float
    """The nearest that another training picture, or the base's picture, comes to it."""
    aligned: float
    """Correlation of their pixels."""

    @property
    def is_copy(self) -> bool:
        """Whether both ways of comparing agree."""
        near = self.similarity - self.usual >= NEAR * (1 - self.usual)
        return near and self.aligned >= ALIGNED


class Copies:
    """1 for a picture that is a copy of a training picture, 0 for others; the mean is their
    share."""

    name = "copies"
    title = "Copies of training pictures"
    source = "Somepalli et al. 2023, section 3; Carlini et al. 2023, section 4.2"
    unit = "share"
    higher_is_better = False
    needs: frozenset[Need] = frozenset({"training", "base"})
    prompts: frozenset[PromptKind] = frozenset({"subject", "context", "class", "unrelated"})

    def score(self, material: Material) -> Scores:
        return {place: float(match.is_copy) for place, match in matches(material).items()}


def matches(material: Material) -> dict[Place, Match]:
    """Of each picture the training picture that it is nearest to."""
    images, training = material.candidate.images, list(material.training)
    if not images or not training:
        return {}
    nearness = _Nearness(material.encoders.image, training)
    drawn_NT = nearness.of(list(images.values()))
    base = material.base.images
    base_NT = dict(zip(base, nearness.of(list(base.values())), strict=True)) if base else {}
    usual_T = nearness.nearest_others()
    small = [_small(image) for image in training]
    found = {}
    for place, row_T in zip(images, drawn_NT, strict=True):
        likely = row_T.topk(min(_NEAREST, len(training))).indices.tolist()
        aligned = {t: _aligned(images[place], small[t]) for t in likely}
        best = max(likely, key=lambda t: (float(row_T[t]) + aligned[t], -t))
        usual = max(float(usual_T[best]), float(base_NT.get(place, usual_T)[best]))
        found[place] = Match(best, float(row_T[best]), usual, aligned[best])
    return found


class _Nearness:
    """Cosines with training pictures, or with their mirror images where these are nearer."""

    def __init__(self, encoder: ImageEncoder, training: Sequence[Image.Image]) -> None:
        self.encoder = encoder
        mirrored = [ImageOps.mirror(image) for image in training]
        self.as_they_are_TD = encoder.features(training).double()
        self.mirrored_TD = encoder.features(mirrored).double()

    def of(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, T]."""
        return self._cosines(self.encoder.features(images).double())

    def nearest_others(self) -> Tensor:
        """[T]: how near the nearest other training picture is. Doubles in the folder do not count:
        they say nothing about what is usual. -1 where there is no other."""
        between_TT = self._cosines(self.as_they_are_TD)
        between_TT.fill_diagonal_(-1)
        between_TT[between_TT > 1 - 1e-5] = -1
        return between_TT.amax(1)

    def _cosines(self, features_ND: Tensor) -> Tensor:
        return torch.maximum(features_ND @ self.as_they_are_TD.T, features_ND @ self.mirrored_TD.T)


def _small(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _pixels(image: Image.Image) -> Tensor:
    """[3, H, W] from 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _aligned(drawn: Image.Image, training: Image.Image) -> float:
    """The largest correlation of the training picture's middle with a window of the drawn one, as
    it is or mirrored: -1 to 1, 0 where either shows one colour only. Each colour channel has its
    own mean taken out: it is structure that is compared."""
    windows_DL = functional.unfold(_pixels(_small(drawn))[None], _WINDOW)[0]
    windows_3DL = windows_DL.unflatten(0, (3, -1))
    windows_DL = (windows_3DL - windows_3DL.mean(1, keepdim=True)).flatten(0, 1)
    lengths_L = windows_DL.norm(dim=0).clamp(min=1e-3)
    best = -1.0
    edge = (_SIDE - _WINDOW) // 2
    box = (edge, edge, edge + _WINDOW, edge + _WINDOW)
    for one in (training, ImageOps.mirror(training)):
        middle_3D = _pixels(one.crop(box)).flatten(1)
        middle_D = (middle_3D - middle_3D.mean(1, keepdim=True)).flatten()
        length = middle_D.norm().clamp(min=1e-3)
        best = max(best, float((middle_D @ windows_DL / lengths_L / length).max()))
    return best

"""Copies: pictures that are a training picture once more.

Laid over each other, as it is, mirrored, or moved a little, a copy and its training picture agree
in structure and in colour, and by more than is usual: by more than other training pictures agree
with that one, and the base's own picture of the same prompt and noise (Carlini et al. 2023,
"Extracting Training Data from Diffusion Models", section 4.2, compare with the nearest others as
well). In features it has come nearer to the training picture than the base's was (Somepalli et al.
2023, "Diffusion Art or Digital Forgery?", section 3).

Where the user has SSCD (Pizzi et al. 2022), which was trained to find copies, its cosine decides
alone. Shapes: N drawn pictures, T training pictures, D feature width, H W pixels, L windows.
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

ALIGNED = 0.8
"""Correlation of structure from which two pictures are laid over each other. This and the next two
are calibrated on photographs and runs: docs/notes.md."""
COLOUR = 0.2
"""Root mean square difference of colours, of 1, up to which they are the same."""
BEYOND_USUAL = 0.3
"""Share of the way from the usual correlation to 1 that a copy goes."""
SSCD = 0.75
"""Cosine from which SSCD calls two pictures copies (its model card)."""
_SIDE, _WINDOW = 32, 24
"""Pictures are compared at this many pixels a side, the middle window of one anywhere in the
other."""
_ALL, _NEAREST = 32, 16
"""Of more training pictures than the first, only so many, the nearest by features, are laid over a
picture."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """How far two pictures agree where they are laid over each other."""

    structure: float
    """Correlation, -1 to 1, of what is left of each colour channel without its mean."""
    colour: float
    """Root mean square difference, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Match:
    """A drawn picture and the training picture that it is nearest to."""

    training: int
    """Which of the training pictures."""
    similarity: float
    """Correlation of structure; with SSCD its cosine."""
    usual: float
    """The nearest that another training picture, or the base's picture, comes to it."""
    is_copy: bool


class Copies:
    """1 for a picture that is a copy of a training picture, 0 for others; the mean is their
    share."""

    name = "copies"
    title = "Copies of training pictures"
    source = "Somepalli et al. 2023, section 3; Carlini et al. 2023, section 4.2"
    unit = "share"
    bounds = (0.0, 1.0)
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
    if material.encoders.copies is not None:
        return _by_sscd(material, material.encoders.copies)
    nearness = _Nearness(material.encoders.image, training)
    drawn_NT = nearness.of(list(images.values()))
    base = material.base.images
    base_NT = dict(zip(base, nearness.of(list(base.values())), strict=True)) if base else {}
    others_TT = nearness.between()
    small = [_small(image) for image in training]
    found = {}
    for place, row_T in zip(images, drawn_NT, strict=True):
        aligned = {t: align(images[place], small[t]) for t in _likely(row_T)}
        best = max(aligned, key=lambda t: (aligned[t].structure, -t))
        usual = _usual(best, others_TT[best], small, base.get(place))
        base_T = base_NT.get(place)
        nearer = base_T is None or float(row_T[best]) > float(base_T[best])
        one = aligned[best]
        beyond = one.structure - usual >= BEYOND_USUAL * (1 - usual)
        over = one.structure >= ALIGNED and one.colour <= COLOUR
        found[place] = Match(best, one.structure, usual, over and beyond and nearer)
    return found


def align(drawn: Image.Image, training: Image.Image) -> Aligned:
    """The middle of the training picture, as it is or mirrored, on the window of the drawn one that
    it correlates with best; 0 where either shows one colour only."""
    raw_DL = functional.unfold(_pixels(_small(drawn))[None], _WINDOW)[0]
    raw_3DL = raw_DL.unflatten(0, (3, -1))
    windows_DL = (raw_3DL - raw_3DL.mean(1, keepdim=True)).flatten(0, 1)
    lengths_L = windows_DL.norm(dim=0).clamp(min=1e-3)
    edge = (_SIDE - _WINDOW) // 2
    box = (edge, edge, edge + _WINDOW, edge + _WINDOW)
    found = []
    for one in (_small(training), ImageOps.mirror(_small(training))):
        middle_3D = _pixels(one.crop(box)).flatten(1)
        centred_D = (middle_3D - middle_3D.mean(1, keepdim=True)).flatten()
        length = centred_D.norm().clamp(min=1e-3)
        structure, where = (centred_D @ windows_DL / lengths_L / length).max(0)
        apart = (raw_DL[:, where] - middle_3D.flatten()).square().mean().sqrt()
        found.append(Aligned(float(structure), float(apart)))
    return max(found, key=lambda one: one.structure)


def _by_sscd(material: Material, encoder: ImageEncoder) -> dict[Place, Match]:
    nearness = _Nearness(encoder, list(material.training))
    drawn_NT = nearness.of(list(material.candidate.images.values()))
    usual_T = nearness.between().amax(1)
    found = {}
    for place, row_T in zip(material.candidate.images, drawn_NT, strict=True):
        best = int(row_T.argmax())
        nearest = float(row_T[best])
        found[place] = Match(best, nearest, float(usual_T[best]), nearest > SSCD)
    return found


def _likely(row_T: Tensor) -> list[int]:
    """The training pictures that are worth being laid over a picture."""
    if len(row_T) <= _ALL:
        return list(range(len(row_T)))
    nearest: list[int] = row_T.topk(_NEAREST).indices.tolist()
    return nearest


def _usual(
    best: int, others_T: Tensor, small: Sequence[Image.Image], base: Image.Image | None
) -> float:
    """How far other training pictures, and the base's picture, correlate with the one at hand.
    Doubles among the training pictures say nothing about what is usual."""
    there = [t for t in _likely(others_T) if t != best and float(others_T[t]) > -1]
    found = [align(small[t], small[best]).structure for t in there]
    found += [] if base is None else [align(base, small[best]).structure]
    return max(found, default=0.0)


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

    def between(self) -> Tensor:
        """[T, T] of the training pictures; -1 for a picture with itself and with its doubles."""
        between_TT = self._cosines(self.as_they_are_TD)
        between_TT.fill_diagonal_(-1)
        between_TT[between_TT > 1 - 1e-5] = -1
        return between_TT

    def _cosines(self, features_ND: Tensor) -> Tensor:
        return torch.maximum(features_ND @ self.as_they_are_TD.T, features_ND @ self.mirrored_TD.T)


def _small(image: Image.Image) -> Image.Image:
    if image.size == (_SIDE, _SIDE) and image.mode == "RGB":
        return image
    return image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _pixels(image: Image.Image) -> Tensor:
    """[3, H, W] from 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

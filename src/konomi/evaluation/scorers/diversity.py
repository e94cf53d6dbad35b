"""Diversity: does another seed give another picture?"""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konomi.evaluation.pictures import Material, Pictures, Place
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.scorer import Need, Scores

EVERY: frozenset[PromptKind] = frozenset({"subject", "context", "class", "unrelated"})


class Diversity:
    """Mean distance, 1 minus cosine, of a picture from the others of its prompt: DIV, by features.
    Their mean is the mean over pairs. Low where a model has only one picture left to draw."""

    name = "diversity"
    title = "Difference between pictures of one prompt"
    source = "Ruiz et al. 2022, DreamBooth, section 4.3 (DIV), by features in place of LPIPS"
    unit = "distance"
    bounds = (0.0, 2.0)
    higher_is_better = True
    needs: frozenset[Need] = frozenset()
    prompts = EVERY

    def score(self, material: Material) -> Scores:
        encoder = material.encoders.image

        def distances(images: Sequence[Image.Image]) -> Tensor:
            features_ND = encoder.features(images).double()
            return (1 - features_ND @ features_ND.T).clamp(min=0)

        return _of_each_prompt(material.candidate, distances)


class LpipsDiversity:
    """The same by LPIPS, the distance of the paper, where the package `lpips` and its weights are
    on this machine."""

    name = "lpips_diversity"
    title = "Difference between pictures of one prompt, by LPIPS"
    source = "Ruiz et al. 2022, DreamBooth, section 4.3 (DIV); Zhang et al. 2018, LPIPS"
    unit = "distance"
    bounds = (0.0, math.inf)
    higher_is_better = True
    needs: frozenset[Need] = frozenset({"package"})
    prompts = EVERY

    def __init__(self) -> None:
        self._network: Any = None

    def available(self) -> bool:
        """Whether the package is installed and its weights can be loaded. Asks only once."""
        if self._network is None:
            self._network = _lpips_network()
        return self._network is not False

    def score(self, material: Material) -> Scores:
        if not self.available():
            return {}
        return _of_each_prompt(material.candidate, self._distances)

    @torch.no_grad()
    def _distances(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = [_lpips_pixels(image, images[0].size) for image in images]
        found = torch.zeros(len(images), len(images), dtype=torch.float64)
        for i in range(len(images)):
            for j in range(i):
                found[i, j] = found[j, i] = float(self._network(pixels[i], pixels[j]))
        return found


def _lpips_network() -> Any:
    """False where it cannot be had: the weights of its AlexNet come from the network once."""
    if importlib.util.find_spec("lpips") is None:
        return False
    import lpips

    try:
        return lpips.LPIPS(net="alex", verbose=False).eval()
    except (OSError, RuntimeError):
        return False


def _lpips_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """[1, 3, H, W] from -1 to 1, as LPIPS wants them."""
    values = np.array(image.convert("RGB").resize(size))
    return torch.from_numpy(values).permute(2, 0, 1)[None].float() / 127.5 - 1


def _of_each_prompt(
    pictures: Pictures, distances: Callable[[Sequence[Image.Image]], Tensor]
) -> dict[Place, float]:
    """Each picture's mean distance from the others of its prompt."""
    found: dict[Place, float] = {}
    for prompt in range(len(pictures.prompts)):
        images: Mapping[Place, Image.Image] = {
            place: image for place, image in pictures.images.items() if place[0] == prompt
        }
        if len(images) < 2:
            continue
        between = distances(list(images.values()))
        means = (between.sum(1) - between.diagonal()) / (len(images) - 1)
        found.update(zip(images, means.tolist(), strict=True))
    return found

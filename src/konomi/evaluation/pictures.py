"""The pictures that scores are computed from.

Every candidate draws the same prompts with the same seeds, so from the same initial noise: picture
(p, s) of one candidate stands beside picture (p, s) of the base and of every other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.prompts import EvaluationPrompt

Place = tuple[int, int]
"""Which prompt and which seed, by their number in the plan."""


@dataclass(frozen=True, slots=True)
class References:
    """Pictures of the subject that what is drawn is compared with."""

    images: tuple[Image.Image, ...]
    held_out: bool
    """Whether nothing was trained on them. Where too few pictures are there, they are the training
    pictures, and whoever shows a score says so."""
    captions: tuple[str, ...] = ()
    """One for each image, or none."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """All pictures of one candidate, P prompts by S seeds."""

    prompts: tuple[EvaluationPrompt, ...]
    seeds: tuple[int, ...]
    images: Mapping[Place, Image.Image]

    def of_prompt(self, prompt: int) -> tuple[Image.Image, ...]:
        """The S pictures of one prompt, by seed."""
        return tuple(self.images[prompt, seed] for seed in range(len(self.seeds)))


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a scorer may ask for. What it needs is named in `Scorer.needs`, and is there."""

    candidate: Pictures
    base: Pictures
    """The untouched base's, at the same places. For the base's own scores, `candidate` itself."""
    references: References
    training: Sequence[Image.Image]
    """What was trained on; empty where unknown."""
    encoders: Encoders

    def features(self, pictures: Pictures) -> Mapping[Place, Tensor]:
        """Unit vectors [D] of the image encoder, for each place; computed once for each picture."""
        images = list(pictures.images.values())
        return dict(zip(pictures.images, self.encoders.image.features(images), strict=True))

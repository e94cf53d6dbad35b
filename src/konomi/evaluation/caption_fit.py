"""Captions that are not of their picture: whose loss with its own caption is above the loss with
captions of other pictures.

The loss of a picture says little of its caption, because its detail moves the loss far more. Its
losses with two captions differ by nothing but the captions: the base, which knows what the words
mean, predicts the noise better with the right one (Li et al. 2023, "Your Diffusion Model is
Secretly a Zero-Shot Classifier", section 3.2, with the same noise for every caption).
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from konomi.config.recipe import Recipe
from konomi.evaluation.fixed_noise import Captioned
from konomi.evaluation.memorisation import encoded, picture_losses
from konomi.models.base import BaseModel

LEAST_IMAGES = 5
OTHERS = 4
"""Captions of other pictures that each is tried with."""
BEYOND = 5.0
"""How many deviations above the median of all pictures a wrong caption stands."""
LEAST_SPREAD = 0.02
"""Deviation below which pictures do not really differ."""
_BATCH = 4


@dataclass(frozen=True, slots=True)
class CaptionFit:
    """A picture, and how well its caption fits."""

    name: str
    path: str
    """Where its bytes are: a file, or `CONTAINER::MEMBER`."""
    caption: str
    excess: float
    """How much the loss with its own caption is above the mean with others', as a share: below 0
    where its own fits better."""
    deviations: float
    """How far `excess` is above the median of all pictures, in robust standard deviations."""
    wrong: bool
    """Whether it is to be looked at."""


def caption_excesses(
    base: BaseModel, recipe: Recipe, shown: Captioned, size: tuple[int, int]
) -> Generator[tuple[int, int], None, tuple[float, ...]]:
    """`CaptionFit.excess` of each picture. Yields how many of all measurements are done.

    base: without anything on it.
    recipe: whose objective and text settings count.
    shown: the pictures and their captions, at least two of which differ.
    size: width, height in pixels.
    """
    batches = encoded(base, shown.images, shown.captions, size, batch=_BATCH)
    texts = [_tried(shown.captions, number) for number in range(len(shown.captions))]
    rounds = max(map(len, texts))
    losses_RN = np.full((rounds, len(texts)), np.nan)
    for turn in range(rounds):
        for number, examples in enumerate(batches):
            first = number * _BATCH
            some = [tried[turn % len(tried)] for tried in texts[first : first + len(examples)]]
            given = replace(examples, captions=tuple(some))
            losses_RN[turn, first : first + len(examples)] = picture_losses(base, recipe, [given])
            yield turn * len(texts) + first + len(examples), rounds * len(texts)
    others_N = losses_RN[1:].mean(0)
    return tuple(map(float, (losses_RN[0] - others_N) / others_N))


def _tried(captions: Sequence[str], number: int) -> list[str]:
    """A picture's own caption, then different ones of the pictures that follow it."""
    own = captions[number]
    following = [*captions[number + 1 :], *captions[:number]]
    others = [text for text in dict.fromkeys(following) if text != own]
    step = max(len(others) // OTHERS, 1)
    return [own, *others[::step][:OTHERS]]


def deviations(excesses: Sequence[float]) -> tuple[float, ...]:
    """How far each is above the median, by the median absolute deviation (1.4826 times it is the
    standard deviation of a normal distribution).
    """
    values = np.asarray(excesses)
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), LEAST_SPREAD)
    return tuple(map(float, (values - middle) / spread))


def is_wrong(excess: float, deviation: float) -> bool:
    """Whether a caption is to be looked at: others fit its picture better, and by more than is
    usual.
    """
    return excess > 0 and deviation > BEYOND

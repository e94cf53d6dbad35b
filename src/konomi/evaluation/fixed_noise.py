"""The loss of the same few pictures with the same noise, of the base and of every candidate: what
is known of a file without drawing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from konomi import __version__
from konomi.config.recipe import Recipe
from konomi.config.write import recipe_data
from konomi.data.batch import Examples
from konomi.evaluation.encoders.remembered import content_of
from konomi.evaluation.memorisation import (
    CLASS_LOSS,
    HELD_OUT_LOSS,
    MEMORISATION,
    TIMESTEPS,
    Losses,
    encoded,
    mean_loss,
    memorisation,
    picture_losses,
)
from konomi.evaluation.summary import Estimate
from konomi.models.base import BaseModel

LossesOf = Mapping[str, tuple[float, ...]]
"""Group of pictures -> the loss of each."""
LOSS_NOTES = (HELD_OUT_LOSS, CLASS_LOSS, MEMORISATION)
_BATCH = 4
"""Pictures that are computed together."""
TRAINING, HELD_OUT, CLASS = "training", "held_out", "class"


@dataclass(frozen=True, slots=True)
class Captioned:
    """Pictures and what they are called, one caption each."""

    images: tuple[Image.Image, ...] = ()
    captions: tuple[str, ...] = ()

    def some(self, count: int) -> "Captioned":
        """At most so many, chosen by content: the same ones whatever their order."""
        pairs = zip(self.images, self.captions, strict=True)
        chosen = sorted(pairs, key=lambda pair: content_of(pair[0]))[:count]
        return Captioned(tuple(one for one, _ in chosen), tuple(text for _, text in chosen))


@dataclass(frozen=True, slots=True)
class LossPictures:
    """What the loss is measured of, as far as it is known before the base has drawn."""

    recipe: Recipe
    """Whose objective and text settings count."""
    count: int
    """The most pictures of each group."""
    training: Captioned
    held_out: Captioned
    """Of the subject."""


@dataclass(slots=True)
class FixedNoise:
    """Measures one model after another."""

    base: BaseModel
    recipe: Recipe
    groups: Mapping[str, Captioned]
    """By name; those that hold none are left out."""
    size: tuple[int, int]
    """Width, height in pixels."""
    _encoded: dict[str, tuple[Examples, ...]] = field(default_factory=dict)

    def losses(self, model: BaseModel) -> LossesOf:
        """Of the base with what is attached to it, or of a model by itself, with its own VAE."""
        try:
            return self._losses(model, _BATCH)
        except torch.OutOfMemoryError:
            # One by one they are the same to rounding.
            self._encoded = {}
            return self._losses(model, 1)

    def key(self, model_key: str) -> str:
        """Names everything that a model's losses depend on."""
        settings = recipe_data(self.recipe)
        facts = [
            __version__,
            model_key,
            TIMESTEPS,
            self.size,
            {name: settings[name] for name in ("objective", "text")},
            {
                name: [[content_of(image).hex() for image in some.images], some.captions]
                for name, some in self.groups.items()
            },
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _losses(self, model: BaseModel, batch: int) -> LossesOf:
        encodings = self._encoded if model is self.base else {}
        if not encodings:
            encodings |= {
                name: encoded(model, some.images, some.captions, self.size, batch=batch)
                for name, some in self.groups.items()
            }
        return {name: picture_losses(model, self.recipe, some) for name, some in encodings.items()}


def fixed_noise(
    pictures: LossPictures, base: BaseModel, of_class: Captioned, size: tuple[int, int]
) -> FixedNoise | None:
    """Of the groups that say something; None where that is none.

    of_class: the base's own pictures of the class.
    """
    held_out = pictures.held_out.some(pictures.count)
    # Without others there is nothing that training pictures could be told from.
    training = pictures.training.some(pictures.count) if held_out.images else Captioned()
    groups = {TRAINING: training, HELD_OUT: held_out, CLASS: of_class.some(pictures.count)}
    groups = {name: some for name, some in groups.items() if some.images}
    return FixedNoise(base, pictures.recipe, groups, size) if groups else None


def loss_scores(own: LossesOf, base: LossesOf | None) -> dict[str, Estimate]:
    """What the losses of a candidate say beside the base's; of the base itself, with None, the
    losses alone. A loss that is not a number leaves out what it belongs to.
    """
    found = {}
    for group, note in ((HELD_OUT, HELD_OUT_LOSS), (CLASS, CLASS_LOSS)):
        if group in own and _finite(own[group]):
            both = Losses(own[group], own[group] if base is None else base[group])
            estimate = mean_loss(both)
            found[note.name] = estimate if base is not None else _alone(estimate)
    if base is not None and TRAINING in own and HELD_OUT in own:
        pair = [Losses(own[group], base[group]) for group in (TRAINING, HELD_OUT)]
        if all(_finite((*one.tuned, *one.base)) for one in pair):
            found[MEMORISATION.name] = memorisation(*pair)
    return found


def loss_notes(pictures: LossPictures, *, shows_class: bool, knows_training: bool) -> list[str]:
    """A line on each score of losses that is left out."""
    if not pictures.count:
        return []
    notes = []
    names = f"{MEMORISATION.name}, {HELD_OUT_LOSS.name}"
    if not knows_training:
        notes.append(f"not measured: {names}: it is not known what was trained on.")
    elif not pictures.held_out.images:
        notes.append(f"not measured: {names}: no pictures were held out of training.")
    if not shows_class:
        notes.append(f"not measured: {CLASS_LOSS.name}: no prompt shows the class.")
    return notes


def _finite(losses: Sequence[float]) -> bool:
    return all(abs(loss) < float("inf") for loss in losses)


def _alone(estimate: Estimate) -> Estimate:
    return Estimate(estimate.mean, estimate.low, estimate.high, None, None, estimate.count)

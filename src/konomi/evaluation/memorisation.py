"""Copies by the weights, without drawing: does the loss tell training pictures from others?

A model that has learned a subject predicts the noise on new pictures of it about as well as on
those it was trained on; one that has memorised does better on the latter. Some pictures are easy
for any model, so it is the fall of the loss from the base's that is compared (membership inference
with calibrated difficulty: Watson et al. 2022, "On the Importance of Difficulty Calibration in
Membership Inference Attacks"; for diffusion models Carlini et al. 2023, "Extracting Training Data
from Diffusion Models", section 5). Shapes: M training pictures, N held-out ones; B of one batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps

from konomi.config.recipe import Recipe
from konomi.data.batch import Examples
from konomi.diffusion.random import Rng, stable_hash
from konomi.evaluation.encoders.remembered import content_of
from konomi.evaluation.statistics import estimate
from konomi.evaluation.summary import Estimate, ScorerNote
from konomi.methods.denoising import DenoisingLoss
from konomi.models.base import BaseModel
from konomi.models.modes import eval_mode

TIMESTEPS = 4
"""Noise levels at which the loss is measured, evenly spread."""
_NORMAL = 1.959963984540054

MEMORISATION = ScorerNote(
    name="memorisation",
    title="Training pictures told from others by their loss",
    source="Watson et al. 2022; Carlini et al. 2023, section 5",
    unit="AUC",
    higher_is_better=False,
)
CLASS_LOSS = ScorerNote(
    name="class_loss",
    title="Loss on the base's own pictures of the class",
    source="Ho et al. 2020, equation 14, with the same noise for every file",
    unit="loss",
    higher_is_better=False,
)
HELD_OUT_LOSS = ScorerNote(
    name="held_out_loss",
    title="Loss on pictures that were not trained on",
    source="Ho et al. 2020, equation 14, with the same noise for every file",
    unit="loss",
    higher_is_better=False,
)


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of each of some pictures with fixed noise: of the tuned model and of the base."""

    tuned: tuple[float, ...]
    base: tuple[float, ...]

    @property
    def falls(self) -> tuple[float, ...]:
        """How far training lowered each."""
        return tuple(before - after for before, after in zip(self.base, self.tuned, strict=True))


def encoded(
    base: BaseModel,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    size: tuple[int, int],
    *,
    batch: int = 4,
) -> tuple[Examples, ...]:
    """Pictures as `picture_losses` takes them: through the VAE once, however often their loss is
    measured. On the CPU.

    base: whose VAE counts.
    images: at any size; the middle of each is brought to `size`.
    captions: one for each image.
    size: width, height in pixels.
    batch: pictures that are computed together, here and later.
    """
    found = []
    with torch.no_grad(), eval_mode(base.vae):
        for start in range(0, len(images), batch):
            some = slice(start, start + batch)
            examples = _examples(images[some], captions[some], size)
            assert examples.pixels is not None
            latents = base.encode_images(examples.pixels.to(base.device)).to("cpu")
            # Only an inpainting base reads pixels, those around its hole.
            pixels = examples.pixels if base.inpainting else None
            found.append(replace(examples, latents=latents, pixels=pixels))
    return tuple(found)


def picture_losses(
    base: BaseModel, recipe: Recipe, batches: Sequence[Examples], *, timesteps: int = TIMESTEPS
) -> tuple[float, ...]:
    """The mean denoising loss of each picture, of the base with whatever is attached to it.

    base: the model; its device and precision are kept.
    recipe: whose objective and text settings count.
    batches: of `encoded`.
    timesteps: evenly spread noise levels. The noise follows from the picture's content: the same
    for every file, whatever else is measured.
    """
    denoising = DenoisingLoss(base, recipe)
    levels = base.process.spread_timesteps(timesteps, recipe.objective)
    found: list[float] = []
    with torch.no_grad(), eval_mode(base.denoiser, *base.text_encoders.values()):
        for examples in batches:
            text = base.encode_captions(examples.captions, recipe.text)
            given = replace(examples.to(base.device), text=text)
            sums_B = torch.zeros(len(given), dtype=torch.float64)
            for level in levels:
                rng = Rng.for_step(0, level, device=base.device)
                timesteps_B = base.process.timesteps([level] * len(given), base.device)
                loss_B = denoising.per_example(given, rng, timesteps_B=timesteps_B)
                sums_B += loss_B.double().cpu()
            found += (sums_B / len(levels)).tolist()
    return tuple(found)


def _examples(
    images: Sequence[Image.Image], captions: Sequence[str], size: tuple[int, int]
) -> Examples:
    width, height = size
    fitted = [ImageOps.fit(image.convert("RGB"), size) for image in images]
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in fitted]
    contents = [stable_hash("fixed noise", content_of(image).hex()) for image in images]
    return Examples(
        names=tuple(captions),
        sample_ids=torch.tensor(contents, dtype=torch.int64),
        captions=tuple(captions),
        sizes=torch.tensor([[height, width, 0, 0, height, width]] * len(images)),
        pixels=torch.stack(pixels).float() / 127.5 - 1,
    )


def memorisation(training: Losses, held_out: Losses) -> Estimate:
    """The chance that training lowered the loss of a training picture more than that of a held-out
    one: 0.5 where they cannot be told apart, 1 where each can. Beside it the same of the base's own
    loss, which tells whether the pictures were told apart before.

    Raises ValueError where either has no picture.
    """
    found = auc(training.falls, held_out.falls)
    low, high = auc_interval(found, len(training.tuned), len(held_out.tuned))
    own = auc([-loss for loss in training.base], [-loss for loss in held_out.base])
    return Estimate(found, low, high, own, None, len(training.tuned) + len(held_out.tuned))


def mean_loss(losses: Losses) -> Estimate:
    """The mean loss of some pictures beside the base's, with intervals over pictures."""
    tuned, before = (
        {(picture, 0): loss for picture, loss in enumerate(of)}
        for of in (losses.tuned, losses.base)
    )
    return estimate(tuned, before, bounds=(0.0, math.inf))


def auc(ours: Sequence[float], others: Sequence[float]) -> float:
    """The chance that one of `ours` is greater than one of `others`, ties counting half: the area
    under the ROC curve, the Mann-Whitney statistic over M x N (Mann & Whitney 1947).

    Raises ValueError where either is empty.
    """
    if not len(ours) or not len(others):
        raise ValueError("no pictures to compare")
    ordered = np.sort(np.asarray(others, dtype=np.float64))
    mine = np.asarray(ours, dtype=np.float64)
    below = np.searchsorted(ordered, mine, side="left")
    not_above = np.searchsorted(ordered, mine, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def auc_interval(found: float, ours: int, others: int) -> tuple[float, float]:
    """95 %, also at 0 and 1 and with a handful of pictures: the values of the true area of which
    `found` is no more than 1.96 standard errors away (Newcombe 2006, "Confidence intervals for an
    effect size measure based on the Mann-Whitney statistic", part 2, method 5)."""

    def too_far(true: float) -> bool:
        extra = (ours + others) / 2 - 1
        spread = 1 + extra * (1 - true) / (2 - true) + extra * true / (1 + true)
        error = math.sqrt(true * (1 - true) * spread / (ours * others))
        return abs(true - found) > _NORMAL * error

    return _edge(found, 0.0, too_far), _edge(found, 1.0, too_far)


def _edge(inside: float, outside: float, too_far: Callable[[float], bool]) -> float:
    """Where `too_far` begins on the way out, by halving."""
    # At 0 and 1 there is no spread, so only just inside of them is asked.
    outside += 1e-12 if outside == 0 else -1e-12
    if not too_far(outside):
        return round(outside)
    for _ in range(60):
        middle = (inside + outside) / 2
        if too_far(middle):
            outside = middle
        else:
            inside = middle
    return inside

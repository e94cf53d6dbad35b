"""Prior preservation, for every method that learns a subject: subject loss + weight x class loss.

With class images the class loss is an ordinary denoising loss (Ruiz et al. 2022, equation 2).
Without images its target is the original base's own prediction for the class prompt, on the
subject's noisy latents and timesteps: the class is preserved where the subject is learned, and
nothing has to be generated before.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from konomi.config.recipe import Recipe
from konomi.data.batch import Batch, Examples
from konomi.diffusion.conditioning import Conditioning, concatenate
from konomi.diffusion.random import Rng
from konomi.methods.denoising import DenoisingLoss, subject_and_prior_loss
from konomi.models.base import BaseModel

OriginalBase = Callable[[], AbstractContextManager[None]]
"""Inside, the base computes as if it had never been trained."""


class PreservingLoss:
    """`loss(batch, rng)`: the subjects' loss and, weighted, that of the class.

    `original_base` is how the method takes its learning off the base for a moment. `trains_text`:
    class prompts are encoded anew in every step, because the text encoder changes; else once.
    """

    def __init__(
        self,
        base: BaseModel,
        recipe: Recipe,
        denoising: DenoisingLoss,
        *,
        original_base: OriginalBase,
        trains_text: bool,
    ) -> None:
        self.base = base
        self.denoising = denoising
        self.original_base = original_base
        self.trains_text = trains_text
        self.weight = recipe.objective.prior_weight
        self.predicts = recipe.prior.source == "prediction" and self.weight > 0
        self._prompt = recipe.prior.prompt
        self._nouns = [
            source.class_noun for source in recipe.data.sources if source.role == "train"
        ]
        self._encoded: dict[str, Conditioning] = {}

    def __call__(self, batch: Batch, rng: Rng) -> Tensor:
        """A float32 scalar. Class images in the batch count in any case."""
        if not self.predicts:
            return subject_and_prior_loss(self.denoising, batch, rng, prior_weight=self.weight)
        # First of all: the method's learning is off for it, and no graph may be waiting for its
        # backward pass then.
        target = self.target(batch.subject, rng)
        loss = subject_and_prior_loss(self.denoising, batch, rng, prior_weight=self.weight)
        return loss + self.weight * self.prediction_loss(batch.subject, target, rng)

    def target(self, subject: Examples, rng: Rng) -> Tensor:
        """The original base's prediction for the class prompts, float32 [B, C, h, w]."""
        # The autocast of weights is cached by parameter: what is cast here must not be taken for
        # the trained weights.
        device = self.base.device.type
        with (
            torch.no_grad(),
            self.original_base(),
            torch.autocast(
                device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False
            ),
        ):
            return self._predict(subject, rng)[0]

    def prediction_loss(self, subject: Examples, target: Tensor, rng: Rng) -> Tensor:
        """How far the base in training is from `target`; the mask of the subject says nothing
        about the class.
        """
        noise_pred, timesteps_B = self._predict(subject, rng)
        return self.denoising.weighted_loss(noise_pred, target, timesteps_B, None).mean()

    def _predict(self, subject: Examples, rng: Rng) -> tuple[Tensor, Tensor]:
        """(noise_pred, timesteps). Chance is a pure function of `rng`: latents, noise and timesteps
        are the subject's.
        """
        examples = self._of_class(subject)
        rng = rng.for_samples(subject.sample_ids)
        noised = self.denoising.add_noise(examples, rng)
        conditioning = self.denoising.condition(examples, rng, noised.latents)
        noise_pred = self.base.predict(
            noised.noisy_latents, noised.timesteps_B, conditioning
        ).float()
        return noise_pred, noised.timesteps_B

    def _of_class(self, subject: Examples) -> Examples:
        nouns = subject.class_nouns or (next(iter(self._nouns), ""),) * len(subject)
        prompts = tuple(class_prompt(self._prompt, noun) for noun in nouns)
        return replace(
            subject, captions=prompts, text=None if self.trains_text else self._encode(prompts)
        )

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        """The text states of class prompts, each encoded once; encoders that had been sent away go
        again.
        """
        there = self.base.loaded_parts()
        for prompt in prompts:
            if prompt not in self._encoded:
                with torch.no_grad():
                    self._encoded[prompt] = self.base.encode_captions([prompt], self.denoising.text)
        self.base.unload(*(part for part in self.base.text_encoders if part not in there))
        return concatenate([self._encoded[prompt] for prompt in prompts])


def class_prompt(prompt: str, noun: str) -> str:
    """`a [class]` and `dog` give `a dog`."""
    return " ".join(prompt.replace("[class]", noun).split())

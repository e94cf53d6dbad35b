"""The loss every method shares: add noise to the latents, predict, compare with the target.

Shapes: B batch, C latent channels, h w latent grid, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from konomi.config.load import timestep_contradiction
from konomi.config.recipe import Recipe
from konomi.config.sections import ObjectiveConfig
from konomi.data.batch import Batch, Examples, LossRecord
from konomi.diffusion.conditioning import Conditioning, concatenate
from konomi.diffusion.process import Process
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.models.base import BaseModel

_OPTIONAL = ("pooled", "sizes", "inpaint", "mask")


@dataclass(frozen=True, slots=True)
class Noised:
    """Examples with noise added at their timesteps."""

    latents: Tensor
    """z_0, float32 [B, C, h, w]."""
    noise: Tensor
    """What the target is made of."""
    noisy_latents: Tensor
    """z_t."""
    timesteps_B: Tensor


@dataclass(frozen=True, slots=True)
class DenoiserInputs:
    """What the denoiser gets: noisy latents, timesteps and conditioning."""

    noised: Noised
    conditioning: Conditioning

    def can_batch_with(self, other: "DenoiserInputs") -> bool:
        """Whether one batch can hold both: text of other lengths would have to be padded, which
        changes the answer where no mask says so.
        """
        ours, theirs = self.conditioning, other.conditioning
        return (
            self.noised.noisy_latents.shape[1:] == other.noised.noisy_latents.shape[1:]
            and (ours.mask is not None or ours.states.shape[1] == theirs.states.shape[1])
            and ours.states.shape[2] == theirs.states.shape[2]
            and all((getattr(ours, n) is None) == (getattr(theirs, n) is None) for n in _OPTIONAL)
        )


class DenoisingLoss:
    """`loss(examples, rng)`: the mean denoising loss of some examples (Ho et al. 2020, equation
    14, and its kin).

    Holds what does not change in a run: the base, the objective, and the noise process on the
    base's device.
    """

    def __init__(self, base: BaseModel, recipe: Recipe) -> None:
        check_objective(base, recipe.objective)
        self.base = base
        self.objective = recipe.objective
        self.text = recipe.text
        self._base_process: Process | None = None
        self._process: Process | None = None
        self._device: torch.device | None = None

    @property
    def process(self) -> Process:
        """The base's, as the objective asks for it, on the base's device."""
        base = self.base
        if (
            self._process is None
            or self._base_process is not base.process
            or self._device != base.device
        ):
            self._base_process, self._device = base.process, base.device
            self._process = base.process.for_objective(self.objective, base.name).to(base.device)
        return self._process

    def __call__(
        self, examples: Examples, rng: Rng, *, timesteps_B: Tensor | None = None
    ) -> Tensor:
        """A float32 scalar. Timesteps are drawn unless given."""
        return self.per_example(examples, rng, timesteps_B=timesteps_B).mean()

    def per_example(
        self, examples: Examples, rng: Rng, *, timesteps_B: Tensor | None = None
    ) -> Tensor:
        """The loss of each example, float32 [B]."""
        inputs = self.inputs(examples, rng, timesteps_B=timesteps_B)
        return self.loss_of(self._predict(inputs), inputs.noised, examples)

    def subject_and_prior(
        self, subject: Examples, prior: Examples, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Mean losses of subjects and class images, each as its own call would give it.

        Where sizes agree both are one batch for the denoiser: half the launches, and no more
        memory, since both passes would wait for the backward pass anyway.
        """
        both = self.inputs(subject, rng), self.inputs(prior, rng.fork("prior"))
        if both[0].can_batch_with(both[1]):
            noisy_latents = torch.cat([inputs.noised.noisy_latents for inputs in both])
            timesteps_B = torch.cat([inputs.noised.timesteps_B for inputs in both])
            conditioning = concatenate([inputs.conditioning for inputs in both])
            noise_pred = self.base.predict(noisy_latents, timesteps_B, conditioning).float()
            noise_preds = noise_pred.split([len(subject), len(prior)])
        else:
            noise_preds = tuple(self._predict(inputs) for inputs in both)
        first, second = (
            self.loss_of(noise_pred, inputs.noised, examples).mean()
            for noise_pred, inputs, examples in zip(
                noise_preds, both, (subject, prior), strict=True
            )
        )
        return first, second

    def inputs(
        self, examples: Examples, rng: Rng, *, timesteps_B: Tensor | None = None
    ) -> "DenoiserInputs":
        """The denoiser's inputs for these examples. `rng` is that of the step."""
        rng = rng.for_samples(examples.sample_ids)
        noised = self.add_noise(examples, rng, timesteps_B=timesteps_B)
        return DenoiserInputs(noised, self.condition(examples, rng, noised.latents))

    def _predict(self, inputs: "DenoiserInputs") -> Tensor:
        noised = inputs.noised
        return self.base.predict(
            noised.noisy_latents, noised.timesteps_B, inputs.conditioning
        ).float()

    def add_noise(
        self, examples: Examples, rng: Rng, *, timesteps_B: Tensor | None = None
    ) -> Noised:
        """Draw latents, noise and, unless given, timesteps. `rng` has a key per sample."""
        latents = self.draw_latents(examples, rng)
        if timesteps_B is None:
            timesteps_B = self.process.draw_timesteps(rng.fork("timestep"), self.objective)
        noise = self._noise(latents, rng)
        input_noise = noise
        if self.objective.input_perturbation > 0:
            extra = rng.fork("perturbation").normal(latents.shape[1:])
            input_noise = noise + self.objective.input_perturbation * extra
        noisy_latents = self.process.add_noise(latents, input_noise, timesteps_B)
        return Noised(latents, noise, noisy_latents, timesteps_B)

    def draw_latents(self, examples: Examples, rng: Rng) -> Tensor:
        """z_0 from the VAE's distribution, float32 [B, C, h, w]."""
        latents = examples.latents
        if latents is None:
            if examples.pixels is None:
                raise AssertionError("examples carry neither latents nor pixels")
            with torch.no_grad():
                latents = self.base.encode_images(examples.pixels)
        mean = latents.mean.float()
        return mean + latents.std.float() * rng.fork("latents").normal(mean.shape[1:])

    def condition(self, examples: Examples, rng: Rng, latents: Tensor) -> Conditioning:
        """Cached or fresh text states, with sizes and inpainting channels where the family reads
        them.
        """
        conditioning = examples.text
        if conditioning is None:
            conditioning = self.base.encode_captions(examples.captions, self.text)
        conditioning = self.base.with_sizes(conditioning, examples.sizes)
        if self.base.inpainting:
            conditioning = replace(
                conditioning, inpaint=self._inpaint_channels(examples, rng, latents)
            )
        return conditioning

    def _noise(self, latents: Tensor, rng: Rng) -> Tensor:
        noise = rng.fork("noise").normal(latents.shape[1:])
        if self.objective.noise_offset > 0:
            shift = rng.fork("offset").normal((latents.shape[1], 1, 1))
            noise = noise + self.objective.noise_offset * shift
        return noise

    def loss_of(self, noise_pred: Tensor, noised: Noised, examples: Examples) -> Tensor:
        """The loss of each example, float32 [B], noted in `examples.record`. `noise_pred`: the
        denoiser's output, float32.
        """
        timesteps_B = noised.timesteps_B
        target = self.process.target(noised.latents, noised.noise, timesteps_B)
        return self.weighted_loss(
            noise_pred, target, timesteps_B, examples.loss_mask, examples.record
        )

    def weighted_loss(
        self,
        noise_pred: Tensor,
        target: Tensor,
        timesteps_B: Tensor,
        mask: Tensor | None,
        record: LossRecord | None = None,
    ) -> Tensor:
        """The same for any target [B, C, h, w]: masked, and weighted by timestep."""
        loss = elementwise_loss(noise_pred, target, self.objective)
        mask = mask if self.objective.masked else None
        if mask is not None:
            loss = loss * mask
        loss_B = loss.flatten(1).mean(1)
        if record is not None:
            record.note(loss_B, timesteps_B, mask)
        weights_B = self.process.loss_weights(timesteps_B, self.objective)
        return loss_B if weights_B is None else loss_B * weights_B

    def _inpaint_channels(self, examples: Examples, rng: Rng, latents: Tensor) -> Tensor:
        """[B, 5, h, w]: a random hole, and the latents of the image with the hole in it."""
        if examples.pixels is None:
            raise AssertionError("an inpainting base needs pixels in every step")
        hole = random_holes(rng.fork("hole"), latents.shape[2], latents.shape[3])
        hole_pixels = functional.interpolate(hole, size=examples.pixels.shape[2:], mode="nearest")
        with torch.no_grad():
            masked = self.base.encode_images(examples.pixels * (1 - hole_pixels)).mean.float()
        return torch.cat([hole, masked], dim=1)


def subject_and_prior_loss(
    denoising: Callable[[Examples, Rng], Tensor], batch: Batch, rng: Rng, *, prior_weight: float
) -> Tensor:
    """Loss of the subject plus the weighted loss of the class images (Ruiz et al. 2022, equation
    2).
    """
    if batch.prior is None:
        return denoising(batch.subject, rng)
    if isinstance(denoising, DenoisingLoss):
        subject, prior = denoising.subject_and_prior(batch.subject, batch.prior, rng)
    else:
        subject, prior = denoising(batch.subject, rng), denoising(batch.prior, rng.fork("prior"))
    return subject + prior_weight * prior


def elementwise_loss(noise_pred: Tensor, target: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Element-wise distance. Huber is scaled so that it equals the square near zero."""
    if objective.loss == "mse":
        return functional.mse_loss(noise_pred, target, reduction="none")
    if objective.loss == "l1":
        return functional.l1_loss(noise_pred, target, reduction="none")
    return 2 * functional.huber_loss(
        noise_pred, target, reduction="none", delta=objective.huber_delta
    )


def random_holes(rng: Rng, height: int, width: int) -> Tensor:
    """Float32 [B, 1, height, width], 1 inside: a random rectangle, in a quarter of the samples the
    whole picture.
    """
    u_B5 = rng.uniform((5,))
    device = u_B5.device

    def inside(start_B: Tensor, share_B: Tensor, count: int) -> Tensor:
        length = (0.2 + 0.7 * share_B) * count
        first = start_B * (count - length)
        cell = torch.arange(count, device=device)[None] + 0.5
        return (cell >= first[:, None]) & (cell <= (first + length)[:, None])

    rows, columns = inside(u_B5[:, 0], u_B5[:, 1], height), inside(u_B5[:, 2], u_B5[:, 3], width)
    hole = (rows[:, :, None] & columns[:, None, :]) | (u_B5[:, 4] < 0.25)[:, None, None]
    return hole[:, None].float()


def check_objective(base: BaseModel, objective: ObjectiveConfig) -> None:
    """Refuse combinations that cannot work. Raises RecipeError."""
    if line := timestep_contradiction(objective):
        raise RecipeError(line)
    base.process.for_objective(objective, base.name)

"""From noise to latents, with guidance, from a picture, or within a mask.

Shapes: B images, C latent channels, h w latent grid, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from konomi.adapters.branches import negative_branch
from konomi.diffusion.conditioning import Conditioning, concatenate
from konomi.diffusion.samplers import Sampler
from konomi.generation.drawing import Drawing
from konomi.models.base import BaseModel

OnStep = Callable[[int, int], None]
"""Called after each step with the number of steps done and in all, of the batch that is being
drawn."""


def sample_latents(
    base: BaseModel, drawings: Sequence[Drawing], on_step: OnStep | None = None
) -> Tensor:
    """Float32 latents [B, C, h, w] of drawings that agree in `batch_key`."""
    request = drawings[0].request
    sampler = base.process.sampler(
        request.sampler, num_steps=request.steps, strength=request.strength
    )
    factor = base.latent_factor
    shape = (1, base.latent_channels, request.height // factor, request.width // factor)
    generators = [torch.Generator("cpu").manual_seed(drawing.request.seed) for drawing in drawings]
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(
        base.device
    )
    known, mask = _known_latents(base, drawings)
    # Inpainting at full strength starts from noise alone, else what lies under the mask would
    # shine through.
    if known is None or (mask is not None and request.strength == 1):
        latents = sampler.first_latents(noise)
    else:
        latents = sampler.add_noise(known, noise)
    inpaint = _inpaint_channels(base, drawings) if base.inpainting else None
    guidance = _Guidance.of(base, drawings) if drawings[0].negative is not None else None
    num_evaluations = len(sampler.timesteps)
    for step in range(num_evaluations):
        conditioning = _conditioning(base, drawings, step, inpaint)
        noise_pred = _predict(base, sampler, step, latents, conditioning, guidance)
        latents = sampler.step(noise_pred, step, latents, generators)
        if mask is not None and known is not None and not base.inpainting:
            last = step + 1 == num_evaluations
            kept = known if last else sampler.add_noise(known, noise, step + 1)
            latents = kept * (1 - mask) + latents * mask
        if on_step is not None:
            on_step(step + 1, num_evaluations)
    return latents


def _predict(
    base: BaseModel,
    sampler: Sampler,
    step: int,
    latents: Tensor,
    conditioning: Conditioning,
    guidance: "_Guidance | None",
) -> Tensor:
    """The denoiser's prediction, with guidance where there is some: both halves in one pass, or in
    two where they do not share their weights.
    """
    scaled = sampler.model_input(latents, step).to(base.dtype)
    timesteps = sampler.timesteps[step].to(base.device).expand(len(scaled))
    if guidance is None:
        return base.predict(scaled, timesteps, conditioning).float()
    if base.negative_weights:
        count = len(scaled)
        with negative_branch(base):
            without = base.predict(scaled, timesteps, conditioning[:count]).float()
        with_prompt = base.predict(scaled, timesteps, conditioning[count:]).float()
    else:
        inputs = torch.cat([scaled, scaled])
        timesteps = timesteps[:1].expand(len(inputs))
        without, with_prompt = base.predict(inputs, timesteps, conditioning).float().chunk(2)
    return guidance(without, with_prompt)


@dataclass(frozen=True, slots=True)
class _Guidance:
    """Classifier-free guidance (Ho & Salimans 2022), scaled back where a share says so."""

    scales: Tensor
    """[B, 1, 1, 1]."""
    rescales: Tensor | None
    """phi of each image [B, 1, 1, 1]; None where all are 0."""

    @classmethod
    def of(cls, base: BaseModel, drawings: Sequence[Drawing]) -> "_Guidance":
        scales = [drawing.request.guidance for drawing in drawings]
        rescales = [drawing.request.guidance_rescale or 0.0 for drawing in drawings]
        scales_B111, rescales_B111 = (
            torch.tensor(v, device=base.device).view(-1, 1, 1, 1) for v in (scales, rescales)
        )
        return cls(scales_B111, rescales_B111 if any(rescales) else None)

    def __call__(self, without: Tensor, with_prompt: Tensor) -> Tensor:
        guided = without + self.scales * (with_prompt - without)
        return (
            guided
            if self.rescales is None
            else rescale_guidance(guided, with_prompt, self.rescales)
        )


def rescale_guidance(guided: Tensor, with_prompt: Tensor, share: Tensor | float) -> Tensor:
    """`share` (phi) of the guided prediction brought back to the contrast that each image's
    prediction for the prompt has (Lin et al. 2023, equations 15 and 16): guidance overexposes
    models whose noise process ends in pure noise.
    """
    factor = with_prompt.std((1, 2, 3), keepdim=True) / guided.std(
        (1, 2, 3), keepdim=True
    ).clamp_min(1e-12)
    return share * (guided * factor) + (1 - share) * guided


def _conditioning(
    base: BaseModel, drawings: Sequence[Drawing], step: int, inpaint: Tensor | None
) -> Conditioning:
    """Of all images at a step: the negative ones first where there is guidance."""
    rows = [drawing.positive[step] for drawing in drawings]
    if drawings[0].negative is not None:
        rows = [
            drawing.negative[step] for drawing in drawings if drawing.negative is not None
        ] + rows
    joined = concatenate(rows)
    if inpaint is None:
        return joined
    return replace(
        joined, inpaint=inpaint if drawings[0].negative is None else torch.cat([inpaint, inpaint])
    )


def _known_latents(
    base: BaseModel, drawings: Sequence[Drawing]
) -> tuple[Tensor | None, Tensor | None]:
    """Latents of the pictures to start from [B, C, h, w], and the mask [B, 1, h, w] where there is
    one.

    The mean of the VAE's distribution is taken, so that the noise of a seed is the same with and
    without a picture.
    """
    latents = [_encode(base, drawing.init) for drawing in drawings if drawing.init is not None]
    masks = [_shrink(base, drawing.mask) for drawing in drawings if drawing.mask is not None]
    return (torch.cat(latents) if latents else None), (torch.cat(masks) if masks else None)


def _inpaint_channels(base: BaseModel, drawings: Sequence[Drawing]) -> Tensor:
    """[B, 5, h, w]: mask, latents of the picture with the masked part grey. Without a picture
    everything is masked.
    """
    channels = []
    for drawing in drawings:
        size = (1, 3, drawing.request.height, drawing.request.width)
        init = torch.zeros(size) if drawing.init is None else drawing.init
        mask = torch.ones(1, 1, *size[2:]) if drawing.mask is None else drawing.mask
        masked = init * (mask < 0.5)
        channels.append(torch.cat([_shrink(base, mask), _encode(base, masked)], dim=1))
    return torch.cat(channels).to(base.dtype)


def _encode(base: BaseModel, pixels: Tensor) -> Tensor:
    return base.encode_images(pixels.to(base.device)).mean.float()


def _shrink(base: BaseModel, mask_11HW: Tensor) -> Tensor:
    """A mask on the latent grid, hard."""
    hard = (mask_11HW >= 0.5).float()
    small = torch.nn.functional.interpolate(
        hard, scale_factor=1 / base.latent_factor, mode="nearest"
    )
    return small.to(base.device)

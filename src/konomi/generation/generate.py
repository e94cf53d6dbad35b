"""Pictures from a base: txt2img, img2img and inpainting. Shapes: C channels, h w latent grid, H W
pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konomi.config.sections import TextConfig
from konomi.errors import ModelError
from konomi.generation.aesthetic import AestheticGradients
from konomi.generation.drawing import Drawing, PromptEncoder, drawing_of, with_size
from konomi.generation.infotext import write_infotext
from konomi.generation.request import Origin, Picture, Request
from konomi.generation.sampling import OnStep, sample_latents
from konomi.models.base import BaseModel
from konomi.models.modes import eval_mode


def generate(
    base: BaseModel,
    requests: Sequence[Request],
    *,
    batch: int = 1,
    on_step: OnStep | None = None,
    origin: Origin | None = None,
    aesthetic: AestheticGradients | None = None,
) -> Iterator[Picture]:
    """Draw requests in order. The same request gives the same picture, alone or in a batch, to
    rounding.

    `batch` images are computed together where consecutive requests agree in size, steps, sampler
    and text length. The base is in evaluation mode while a batch is drawn, and in its own again
    whenever a picture is handed out. Text, latents of pictures and images are computed for each
    image by itself. Latents are kept in float32; the denoiser computes in `base.dtype`.
    `aesthetic` tunes the text encoders for each prompt.

    Raises RecipeError for a request that cannot be drawn, ModelError where the picture came out as
    NaN.
    """
    origin = origin or Origin(model=base.name)
    # Everything is checked before anything is drawn; texts and pictures are read when their turn
    # comes.
    sized = [with_size(base, request) for request in requests]
    if aesthetic is not None:
        with eval_mode(*base.text_encoders.values()):
            aesthetic = aesthetic.turned(base, TextConfig(emphasis=True))
    encode = PromptEncoder(base, aesthetic)
    for _, group in groupby(
        (_ready(base, request, encode) for request in sized), key=lambda one: one.batch_key
    ):
        while drawings := list(islice(group, max(batch, 1))):
            images = _draw(base, drawings, on_step)
            for drawing, image in zip(drawings, images):
                yield Picture(image, drawing.request, write_infotext(drawing.request, origin))


def count_on(request: Request, count: int) -> list[Request]:
    """`count` requests that differ in their seed: seed, seed + 1, ..."""
    return [replace(request, seed=request.seed + i) for i in range(count)]


def _ready(base: BaseModel, request: Request, encode: PromptEncoder) -> Drawing:
    with eval_mode(*base.text_encoders.values()):
        return drawing_of(base, request, encode)


def _draw(
    base: BaseModel, drawings: Sequence[Drawing], on_step: OnStep | None
) -> list[Image.Image]:
    with eval_mode(base.denoiser, base.vae):
        latents = sample_latents(base, drawings, on_step)
        return [
            _decode(base, drawing, latents_1Chw)
            for drawing, latents_1Chw in zip(drawings, latents.split(1))
        ]


def _decode(base: BaseModel, drawing: Drawing, latents_1Chw: Tensor) -> Image.Image:
    """One at a time: decoding is the peak of memory, and no image may depend on its neighbours."""
    pixels = (
        base.decode_latents(latents_1Chw).float().cpu()
        if torch.isfinite(latents_1Chw).all()
        else None
    )
    if pixels is None or not torch.isfinite(pixels).all():
        part = "denoiser" if pixels is None else "VAE"
        full = base.dtype == torch.float32
        advice = (
            "Lower the guidance or the adapters' weights." if full else "Choose --precision fp32."
        )
        raise ModelError(
            f"The picture of seed {drawing.request.seed} is not a number: the {part} overflowed in "
            f"{str(base.dtype).removeprefix('torch.')}. {advice}"
        )
    if drawing.init is not None and drawing.mask is not None:
        pixels = pixels * drawing.mask + drawing.init * (1 - drawing.mask)
    return pixels_to_image(pixels)


def pixels_to_image(pixels_13HW: Tensor) -> Image.Image:
    """[1, 3, H, W] from -1 to 1 -> RGB."""
    levels = ((pixels_13HW[0].float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))

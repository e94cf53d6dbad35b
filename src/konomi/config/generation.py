"""How pictures are drawn: said once, and read by `konomi generate`, previews, class images and
whoever draws next.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from konomi.config.bounds import STRICT, Fraction

SamplerName = Literal[
    "ddim", "euler", "euler_a", "heun", "lms", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "unipc", "pndm",
]  # fmt: skip
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What a picture depends on beside its prompt, its size and the model."""

    __pydantic_config__ = STRICT

    negative: str = ""
    """What to avoid."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of the first picture's noise, drawn on the CPU: the same on every device. The next pictures
    count on."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Sampling steps; at most as many as the noise has levels."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 7.0
    """Classifier-free guidance (Ho & Salimans 2022): how strictly the prompt is followed. 1
    switches it off and halves the work."""
    guidance_rescale: Fraction | None = None
    """How far guidance is scaled back to the contrast of the prediction without it (Lin et al.
    2023, section 3.4); by default 0.7 where the base's noise process ends in pure noise, else 0."""
    sampler: SamplerName = "dpmpp_2m"
    """The sampler."""

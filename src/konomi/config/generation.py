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
    """What a picture depends on besides its prompt, its size and the model."""

    __pydantic_config__ = STRICT

    negative: str = ""
    """Negative prompt: what to avoid."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of the first picture's noise, which is drawn on the CPU and so is the same on every
    device. The seeds of the next pictures count up from it."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Sampling steps; at most as many as the noise schedule has timesteps."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 7.0
    """Classifier-free guidance scale (Ho & Salimans 2022): how strictly the prompt is followed. 1
    turns guidance off and halves the computation."""
    guidance_rescale: Fraction | None = None
    """How far the guided prediction is rescaled to the standard deviation of the unguided one (Lin
    et al. 2023, section 3.4); by default 0.7 if the base's noise schedule ends in pure noise,
    otherwise 0."""
    sampler: SamplerName = "dpmpp_2m"
    """The sampler."""

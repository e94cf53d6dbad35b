"""How Aesthetic Gradients tune a prompt: said once, for the command line and for Python."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from konomi.config.bounds import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class AestheticConfig:
    """Aesthetic Gradients (Gallego 2022): for each prompt a copy of the text encoder's weights is
    tuned towards the mean of pictures that somebody likes, and thrown away."""

    __pydantic_config__ = STRICT

    files: tuple[str, ...] = ()
    """Aesthetic embeddings, `FILE` or `FILE:WEIGHT`. Weights mix several; a negative one leads away
    from its pictures. Weights that add up to less than 1 (without signs) keep the rest of the
    prompt as it was."""
    steps: Annotated[int, Field(ge=0, le=1000)] = 10
    """Tuning steps for each prompt (5 to 20 in the paper)."""
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Learning rate of Adam."""
    text: str = ""
    """Words that the direction is turned towards."""
    text_share: Annotated[float, Field(ge=-1, le=1)] = 0.1
    """How far it is turned, as a share of the angle; negative turns it away from the words."""
    slerp: bool = False
    """Mix the tuned and the untuned prompt along the arc between them, not along the chord. Counts
    where weights add up to less than 1."""
    negative: bool = False
    """Also tune the negative prompt, away from the pictures."""
    clip: str = ""
    """The CLIP that the embeddings are of, a folder or hub id, for the parts of it that the base
    lacks; by default the one that the base's text encoder is of."""

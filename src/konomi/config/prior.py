"""Prior preservation: how a base keeps its idea of a class while it learns one member of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from konomi.config.bounds import STRICT
from konomi.config.generation import GenerationConfig

PriorSource = Literal["none", "images", "generate", "prediction", "transparent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig(GenerationConfig):
    """How the class is preserved, so that "a dog" stays any dog (Ruiz et al. 2022); and how class
    images are drawn.
    """

    __pydantic_config__ = STRICT

    source: Literal["auto", "none", "images", "generate", "prediction", "transparent"] = "auto"
    """`images`: class images among the data, from a source of role `prior` or kohya's `reg/`; they
    count in any case. `generate`: class images that the untouched base draws before training, kept
    for later runs; `prediction`: no images, the untouched base's own answer to the class prompt on
    the noise of the subject; `transparent`: an empty picture on `data.images.background`; `none`.
    `auto`: `images` where there are such, else `generate` for dreambooth, nothing for the other
    methods."""
    count: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Class images to draw for each class noun; 0: forty for each training image, at least 100 and
    at most 200 (on a base narrower than Stable Diffusion, such as `tiny`, ten, at least 20)."""
    prompt: Annotated[str, Field(min_length=1)] = "a [class]"
    """What is drawn and said of the class; `[class]` is the class noun."""
    clip: str = ""
    """A CLIP model (folder or hub id) that proposes a class noun where none is given; by default,
    on `tiny`, the one inside konomi."""

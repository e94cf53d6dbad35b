"""Prior preservation: how a base keeps its idea of a class while it learns one member of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from konomi.config.bounds import STRICT
from konomi.config.generation import GenerationConfig

PriorSource = Literal["none", "images", "generate", "prediction", "transparent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig(GenerationConfig):
    """How the class is preserved, so that "a dog" stays any dog (Ruiz et al. 2022), and how class
    images are generated.
    """

    __pydantic_config__ = STRICT

    source: Literal["auto", "none", "images", "generate", "prediction", "transparent"] = "auto"
    """`images`: class images among the data, from a source of role `prior` or kohya's `reg/`; if
    present, they are always used. `generate`: class images generated with the original base before
    training and kept for later runs; `prediction`: no images, but the original base's prediction
    for the class prompt on the subject's noisy latents; `transparent`: an empty image of the colour
    `data.images.background`; `none`. `auto`: `images` if there are any, otherwise `generate` for
    dreambooth and nothing for the other methods."""
    count: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Class images to generate for each class noun. 0: forty per training image, at least 100 and
    at most 200 (on a base narrower than Stable Diffusion, such as `tiny`: ten, at least 20)."""
    prompt: Annotated[str, Field(min_length=1)] = "a [class]"
    """Prompt and caption of class images; `[class]` is replaced by the class noun."""
    clip: str = ""
    """A CLIP model (folder or hub id) that suggests a class noun if none is given; by default, on
    `tiny`, the one that ships with konomi."""

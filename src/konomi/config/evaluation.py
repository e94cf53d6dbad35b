"""How finished files are measured: what is drawn, at which strengths, against which pictures, and
by which encoders.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from konomi.config.bounds import STRICT, Positive, Size
from konomi.config.generation import GenerationConfig
from konomi.config.suggestion import SuggestionConfig

Weight = Annotated[float, Field(ge=-100, le=100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodersConfig:
    """Whose features pictures and texts are compared by: `tiny` (the CLIP inside konomi, for what
    the base `tiny` draws), a folder, or a hub id.
    """

    __pydantic_config__ = STRICT

    image: str = "auto"
    """For likeness, drift, diversity and copies: DINOv2, DINOv3, CLIP or SigLIP 2. auto: `tiny`
    for the base `tiny`, else facebook/dinov2-small, or the encoder of `text` where that is on this
    machine alone."""
    text: str = "auto"
    """For prompt following: CLIP or SigLIP 2. auto: `tiny` for the base `tiny`, else
    openai/clip-vit-large-patch14, or another CLIP that is on this machine."""
    copies: str = ""
    """For copies of training pictures: the TorchScript file of SSCD
    (sscd_disc_mixup.torchscript.pt); empty: pictures are laid over each other."""
    preference: tuple[str, ...] = ()
    """Models of what people prefer, whose scores stand beside the others: PickScore or another CLIP
    that was trained on votes (a folder or hub id), or the file of LAION's aesthetic predictor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig(GenerationConfig):
    """What is drawn and measured of finished files (`konomi evaluate`, `konomi compare`)."""

    __pydantic_config__ = STRICT

    hold_out: Literal["auto", "off"] = "auto"
    """`auto`: where there are 8 or more different training images of a subject, one in eight (at
    most 16), chosen by content, is not trained on: results are compared with those. With
    `run.validate_every` the images that are validated on serve, and no others are held out. `off`:
    all are trained on, and results are compared with training images."""
    prompts: tuple[str, ...] = ()
    """What to draw, `{}` standing for trigger and class noun; by default the subject, the subject
    in other places, its class alone and something unrelated."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 4
    """Pictures of each prompt, from `seed` on: the same noise for the base and every file."""
    weights: tuple[Weight, ...] = (1.0,)
    """Strengths at which each file is drawn; none: 1."""
    size: Size | None = None
    """Picture size; by default the training size."""
    batch: Positive = 4
    """Pictures that are drawn together."""
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    """Whose features are compared."""
    suggestion: SuggestionConfig = field(default_factory=SuggestionConfig)
    """Which of the measured files is recommended."""

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
    """The encoders whose features are used to compare pictures and texts: `tiny` (the CLIP that
    ships with konomi, for pictures of the base `tiny`), a folder, or a hub id.
    """

    __pydantic_config__ = STRICT

    image: str = "auto"
    """For likeness, drift, diversity and copies: DINOv2, DINOv3, CLIP or SigLIP 2. auto: `tiny` for
    the base `tiny`, otherwise facebook/dinov2-small, or the encoder of `text` if only that one is
    on this machine."""
    text: str = "auto"
    """For prompt following: CLIP or SigLIP 2. auto: `tiny` for the base `tiny`, otherwise
    openai/clip-vit-large-patch14, or another CLIP that is on this machine."""
    copies: str = ""
    """For copies of training images: SSCD's TorchScript file (sscd_disc_mixup.torchscript.pt); if
    empty, copies are found by laying pictures over training images."""
    preference: tuple[str, ...] = ()
    """Models of human preference, whose scores are shown beside the others: PickScore or another
    CLIP trained on votes (a folder or hub id), or the file of LAION's aesthetic predictor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig(GenerationConfig):
    """What is generated with finished files and measured (`konomi evaluate`, `konomi compare`)."""

    __pydantic_config__ = STRICT

    hold_out: Literal["auto", "off"] = "auto"
    """`auto`: if a subject has 8 or more different training images, one in eight (at most 16),
    chosen by content, is held out of training, and results are compared with those. If
    `run.validate_every` is set, the validation images are used and no others are held out. `off`:
    all images are trained on, and results are compared with training images."""
    prompts: tuple[str, ...] = ()
    """Prompts, with `{}` in place of trigger and class noun; by default the subject, the subject in
    other settings, its class alone and other things (for the goal `style`: things in that style,
    and some without)."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of pictures per prompt, from `seed` on: the same noise for the base and every file."""
    weights: tuple[Weight, ...] = (1.0,)
    """Weights (strengths) at which each file is applied; an empty list means 1."""
    size: Size | None = None
    """Picture size; by default the training resolution."""
    batch: Positive = 4
    """How many pictures are generated at a time."""
    losses: Annotated[int, Field(ge=0, le=1000)] = 8
    """How many training images, held-out images and pictures of the class have their loss measured
    with fixed noise, of each at most so many: for memorisation, and for the loss on images that
    were not trained on. 0 measures none."""
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    """The encoders whose features are compared."""
    suggestion: SuggestionConfig = field(default_factory=SuggestionConfig)
    """How the recommended file is chosen."""

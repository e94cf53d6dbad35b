"""DreamBooth: give a rare word the meaning of one subject (Ruiz et al. 2022, "DreamBooth: Fine
Tuning Text-to-Image Diffusion Models for Subject-Driven Generation").

Images are called "a [identifier] [class]" and all weights learn to draw them, the text encoder's
too. Class images that the untouched base itself has drawn ("a [class]") are learned beside them,
so that the class stays what it was and the subject is seen in more than its few poses:

    loss = |subject's noise - prediction|^2 + prior_weight |class image's noise - prediction|^2

It is full fine-tuning (or, to save memory, LoRA training) with an identifier, a class noun and a
prior; the work is done by those methods.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.config.sections import OptimizerConfig
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.methods.full import Full, FullConfig
from konomi.methods.lora import Lora, LoraConfig
from konomi.methods.method import Needs, Phase, Result, for_width, learning_rates, rate_for_width
from konomi.models.base import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamboothConfig:
    """One subject from 3 to 20 images, called by an identifier and its class; the class is
    preserved.
    """

    __pydantic_config__ = STRICT

    kind: Literal["dreambooth"] = "dreambooth"
    train: Literal["model", "lora"] = "model"
    """`model`: all weights, as in the paper; `lora`: a small file used with the base, which needs
    less memory."""
    text_encoder: bool = True
    """Train the text encoder too: better likeness, but more memory, and captions are encoded in
    every step."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the LoRA in denoiser and text encoder. Only for `train = "lora"`."""


class Dreambooth:
    """Full or LoRA training with an identifier, a class and the prior."""

    config_type: ClassVar = DreamboothConfig
    default_learning_rate: ClassVar = 5e-6

    def __init__(self, config: DreamboothConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.config = config
        recipe = replace(recipe, optimizer=self._rates(base, recipe.optimizer))
        inner = _inner(config)
        self.training = (
            Full(inner, base, recipe)
            if isinstance(inner, FullConfig)
            else Lora(inner, base, recipe)
        )

    @staticmethod
    def needs(config: DreamboothConfig, base: BaseModel, recipe: Recipe) -> Needs:
        unused = {}
        if config.train == "model":
            unused["method.rank"] = 'method.train is "model"; only "lora" has a rank.'
        if not config.text_encoder:
            unused["optimizer.text_learning_rate"] = (
                "method.text_encoder is off, so the text encoder is not trained."
            )
        inner = _inner(config)
        training = (
            Full.needs(inner, base, recipe)
            if isinstance(inner, FullConfig)
            else Lora.needs(inner, base, recipe)
        )
        return replace(training, prior="generate", identifier=True, unused=unused)

    def default_steps(self, num_images: int) -> int:
        # The paper: about 1,000 steps, 800 to 1,200 with 3 to 6 images.
        return min(max(200 * num_images, for_width(self.base, published=800, narrow=400)), 1200)

    def plan(self) -> tuple[Phase, ...]:
        return tuple(
            replace(phase, name="dreambooth", loss=self.loss) for phase in self.training.plan()
        )

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        return self.training.loss(batch, rng)

    def export(self) -> Result:
        return self.training.export()

    def as_loaded(self, result: Result) -> AbstractContextManager[None]:
        return self.training.as_loaded(result)

    def close(self) -> None:
        self.training.close()

    def _rates(self, base: BaseModel, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The optimizer section with both rates filled in.

        The paper's 5e-6 for the denoiser alone and 2e-6 for both together; LoRA's own 1e-4, half
        of it for text.
        """
        default = self.default_learning_rate
        if self.config.train == "lora":
            default = Lora.default_learning_rate
        elif self.config.text_encoder:
            default = 2e-6
        rate, text_rate = learning_rates(optimizer, rate_for_width(default, base))
        if self.config.train == "model" and optimizer.text_learning_rate is None:
            text_rate = rate
        # `rates` stand in place of a learning rate.
        own = None if optimizer.rates else rate
        return replace(optimizer, learning_rate=own, text_learning_rate=text_rate)


def _inner(config: DreamboothConfig) -> FullConfig | LoraConfig:
    """Settings of the method that does the work."""
    if config.train == "model":
        return FullConfig(text_encoder=config.text_encoder)
    return LoraConfig(rank=config.rank, text_rank=config.rank if config.text_encoder else 0)

"""Full fine-tuning: every weight of the denoiser is trained, and the text encoder's too if asked.

The oldest method (追加学習 of the whole model): it learns most, forgets most, and needs most
memory. Weights are kept in float32 and the computation runs in the chosen precision, so that small
steps are not rounded away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.families.family import Part
from konomi.hardware.precision import PRECISIONS
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.method import (
    Needs,
    ParameterGroup,
    Phase,
    Result,
    Weights,
    learning_rates,
    rate_for_width,
)
from konomi.methods.preservation import PreservingLoss
from konomi.models.base import BaseModel

_NO_TEXT = "method.text_encoder is off, so the text encoder is not trained."


@dataclass(frozen=True, slots=True, kw_only=True)
class FullConfig:
    """The whole model is trained; for thousands of images, or if a LoRA is not enough."""

    __pydantic_config__ = STRICT

    kind: Literal["full"] = "full"
    text_encoder: bool = False
    """Train the text encoder too. Needs more memory, and captions have to be encoded in every
    step."""


class Full:
    """Trains the base's own weights."""

    config_type: ClassVar = FullConfig
    default_learning_rate: ClassVar = 5e-6

    def __init__(self, config: FullConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.parts = _parts(config, base)
        self.denoising = DenoisingLoss(base, recipe)
        self.preserving = PreservingLoss(
            base,
            recipe,
            self.denoising,
            original_base=self.original_base,
            trains_text=config.text_encoder,
        )
        self._before: dict[nn.Parameter, Tensor] = {}

    @staticmethod
    def needs(config: FullConfig, base: BaseModel, recipe: Recipe) -> Needs:
        return Needs(
            trains_text=config.text_encoder,
            pixels=base.inpainting,
            makes="model",
            predicts_prior=True,
            float32_parts=_parts(config, base),
            unused={} if config.text_encoder else {"optimizer.text_learning_rate": _NO_TEXT},
        )

    def default_steps(self, num_images: int) -> int:
        return min(max(100 * num_images, 400), 10_000)

    def plan(self) -> tuple[Phase, ...]:
        default = rate_for_width(self.default_learning_rate, self.base)
        rate, text_rate = learning_rates(self.recipe.optimizer, default)
        groups = []
        for part in self.parts:
            module = self._part(part).requires_grad_(True)
            parameters = {
                f"{part}.{name}": parameter for name, parameter in module.named_parameters()
            }
            part_rate = rate if part == "denoiser" else text_rate
            groups.append(ParameterGroup(name=part, parameters=parameters, learning_rate=part_rate))
        if self.preserving.predicts:
            self._before = {
                p: p.detach().clone() for group in groups for p in group.parameters.values()
            }
        modules = tuple(self._part(part) for part in self.parts)
        return (Phase(name="full", groups=tuple(groups), loss=self.loss, modules=modules),)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        reduced = self.base.dtype != torch.float32
        with torch.autocast(
            self.base.device.type, dtype=self.base.dtype if reduced else None, enabled=reduced
        ):
            return self.preserving(batch, rng)

    @contextmanager
    def original_base(self) -> Iterator[None]:
        """Inside, the base has the weights it came with, of which a copy is kept where the prior
        asks for it.
        """
        trained = {parameter: parameter.data for parameter in self._before}
        try:
            for parameter, before in self._before.items():
                parameter.data = before
            yield
        finally:
            for parameter, data in trained.items():
                parameter.data = data

    def export(self) -> Weights:
        tensors = {
            f"{part}.{name}": tensor.detach().float().clone()
            for part in self.parts
            for name, tensor in self.base.state(part).items()
        }
        return Weights(tensors)

    @contextmanager
    def as_loaded(self, result: Result) -> Iterator[None]:
        """Swap in the weights as the file holds them, in the computation's precision; the trained
        ones are kept.
        """
        if not isinstance(result, Weights):
            raise TypeError("full fine-tuning exports Weights")
        saved_as = PRECISIONS[self.recipe.save.precision]
        # Frozen parts too: the file holds the whole model, all of it rounded.
        modules = (self.base.denoiser, self.base.vae, *self.base.text_encoders.values())
        parameters = [parameter for module in modules for parameter in module.parameters()]
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for parameter in parameters:
                trained = parameter.data
                rounded = trained.to(saved_as).to(
                    self.base.dtype if parameter.requires_grad else trained.dtype
                )
                if rounded is not trained:
                    # They wait in main memory: a second copy of the model is more than many
                    # devices hold.
                    kept.append((parameter, trained.to("cpu")))
                    parameter.data = rounded
            yield
        finally:
            for parameter, trained in kept:
                parameter.data = trained.to(parameter.device)

    def close(self) -> None:
        self._before = {}
        for part in self.parts:
            self._part(part).requires_grad_(False)

    def _part(self, part: Part) -> nn.Module:
        return self.base.denoiser if part == "denoiser" else self.base.text_encoders[part]


def _parts(config: FullConfig, base: BaseModel) -> tuple[Part, ...]:
    """Those that are trained."""
    text = cast("tuple[Part, ...]", tuple(base.text_encoders)) if config.text_encoder else ()
    return ("denoiser", *text)

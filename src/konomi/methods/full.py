"""Full fine-tuning: every weight of the denoiser is trained, and the text encoder's too if asked.

The oldest method (追加学習 of the whole model): it learns most, forgets most, and needs most
memory. Weights are kept in float32 and the computation runs in the chosen precision, so that small
steps are not rounded away.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from konomi.config.blocks import BlockRates
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.families.family import DENOISER, Part
from konomi.families.layer_choice import Layer, read_choices
from konomi.hardware.precision import PRECISIONS
from konomi.methods.chosen_layers import ChosenLayers, RateFactors, layers_of, summary_of
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
_NO_TEXT_CHOSEN = "method.targets names no layer of a text encoder, so none is trained."


@dataclass(frozen=True, slots=True, kw_only=True)
class FullConfig:
    """The whole model is trained; for thousands of images, or if a LoRA is not enough."""

    __pydantic_config__ = STRICT

    kind: Literal["full"] = "full"
    text_encoder: bool = False
    """Train the text encoder too. Needs more memory, and captions have to be encoded in every
    step."""
    targets: tuple[str, ...] = ()
    """Train only these layers, all others stay frozen (transfer learning): blocks (`IN04`, `MID`,
    `OUT03-OUT05`, `TE*` of the text encoder), groups of layers (`cross_attention`, ...), patterns
    of names (`*.attn2.to_k`), those joined by `:` (`OUT*:conv`), and `!` in front of what is left
    out. Empty: every weight."""
    blocks: BlockRates = field(default_factory=BlockRates)
    """Learning rates by block."""


class Full:
    """Trains the base's own weights."""

    config_type: ClassVar = FullConfig
    default_learning_rate: ClassVar = 5e-6

    def __init__(self, config: FullConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self._factors = _factors_of(config, base)
        self.parts = _parts_of(config, base, self._factors)
        self.denoising = DenoisingLoss(base, recipe)
        self.preserving = PreservingLoss(
            base,
            recipe,
            self.denoising,
            original_base=self.original_base,
            trains_text=_trains_text(self.parts),
        )
        self._before: dict[nn.Parameter, Tensor] = {}

    @staticmethod
    def needs(config: FullConfig, base: BaseModel, recipe: Recipe) -> Needs:
        factors = _factors_of(config, base)
        parts = _parts_of(config, base, factors)
        unused = {}
        if not _trains_text(parts):
            reason = _NO_TEXT_CHOSEN if config.text_encoder else _NO_TEXT
            unused["optimizer.text_learning_rate"] = reason
        chosen = None if factors is None else _summary(factors)
        return Needs(
            trains_text=_trains_text(parts),
            pixels=base.inpainting,
            makes="model",
            predicts_prior=True,
            float32_parts=parts,
            unused=unused,
            notes=() if chosen is None else (chosen.note,),
            chosen=chosen,
        )

    def default_steps(self, num_images: int) -> int:
        return min(max(100 * num_images, 400), 10_000)

    def plan(self) -> tuple[Phase, ...]:
        default = rate_for_width(self.default_learning_rate, self.base)
        rate, text_rate = learning_rates(self.recipe.optimizer, default)
        groups = [
            ParameterGroup(
                name=part if factor == 1 else f"{part} x {factor:g}",
                parameters=parameters,
                learning_rate=(rate if part == DENOISER else text_rate) * factor,
            )
            for part in self.parts
            for factor, parameters in self._by_factor(part)
        ]
        if self.preserving.predicts:
            self._before = {
                p: p.detach().clone() for group in groups for p in group.parameters.values()
            }
        modules = tuple(self._part(part) for part in dict.fromkeys((DENOISER, *self.parts)))
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
        modules = {DENOISER: self.base.denoiser, "vae": self.base.vae, **self.base.text_encoders}
        # All weights of a part that is trained are float32, and are drawn with as a file's are.
        formats = {
            parameter: self.base.dtype if part in self.parts else parameter.dtype
            for part, module in modules.items()
            for parameter in module.parameters()
        }
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for parameter, dtype in formats.items():
                trained = parameter.data
                rounded = trained.to(saved_as).to(dtype)
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

    def _by_factor(self, part: Part) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """The part's trained parameters by the factor on their learning rate, 1 first. Gradients
        reach no others.
        """
        module = self._part(part).requires_grad_(self._factors is None)
        named = {f"{part}.{name}": parameter for name, parameter in module.named_parameters()}
        if self._factors is None:
            return [(1.0, named)]
        groups: dict[float, dict[str, nn.Parameter]] = {}
        for layer, factor in self._factors.items():
            for name in layer.names if factor else ():
                if name in named:
                    named[name].requires_grad_(True)
                    groups.setdefault(factor, {})[name] = named[name]
        return sorted(groups.items(), key=lambda group: group[0] != 1)

    def _part(self, part: Part) -> nn.Module:
        return self.base.denoiser if part == DENOISER else self.base.text_encoders[part]


Factors = Mapping[Layer, float]
"""Layer -> factor on its learning rate, 0 for those that stay frozen; None where every weight of
the parts is trained at one rate."""


def _factors_of(config: FullConfig, base: BaseModel) -> Factors | None:
    """Loads no weight. Raises RecipeError, ModelError for a choice of nothing."""
    if not config.targets and config.blocks == BlockRates():
        return None
    layers = layers_of(base)
    choices = read_choices(
        config.targets, base.spec, layers, setting="method.targets", base=base.name
    )

    def default(layer: Layer) -> bool:
        return config.text_encoder or not layer.is_text

    if choices.entries:
        chosen = choices.chosen(base.spec, layers, usual=lambda _: True, default=default)
        if config.text_encoder and not any(layer.is_text for layer in chosen):
            text = [layer for layer in layers if layer.is_text]
            chosen += tuple(layer for layer in text if not choices.excluded(base.spec, layer))
    else:
        chosen = tuple(filter(default, layers))
    rates, kept = RateFactors(config.blocks, base, layers, "method"), set(chosen)
    factors = {layer: rates.of(layer) if layer in kept else 0.0 for layer in layers}
    if not any(factors.values()):
        raise RecipeError(
            "method.targets and method.blocks leave no layer to train. Choose fewer to leave out."
        )
    return factors


def _summary(factors: Factors) -> ChosenLayers:
    return summary_of([layer for layer in factors if factors[layer]], list(factors))


def _parts_of(config: FullConfig, base: BaseModel, factors: Factors | None) -> tuple[Part, ...]:
    """Those of which something is trained."""
    text = tuple(base.text_encoders)
    if factors is None:
        return (DENOISER, *text) if config.text_encoder else (DENOISER,)
    trained = {layer.key.partition(".")[0] for layer, factor in factors.items() if factor}
    return tuple(part for part in (DENOISER, *text) if part in trained)


def _trains_text(parts: tuple[Part, ...]) -> bool:
    return any(part != DENOISER for part in parts)

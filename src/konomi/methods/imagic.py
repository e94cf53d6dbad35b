"""Imagic: edit one picture by a text (Kawar et al. 2022, "Imagic: Text-Based Real Image Editing
with Diffusion Models").

Two phases (section 3.2). First the text encoder's output for the target text is optimised until it
draws the picture: e_found = argmin over e, from e_target, of E |eps - eps_theta(z_t, t, e)|^2, with
all weights frozen. Then e_found is frozen and the denoiser is trained around it, here by a LoRA or
another update of its layers. Between both states lies the edited picture: eta e_target + (1 - eta)
e_found.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from konomi.adapters.live import LiveAdapters, set_requires_grad
from konomi.adapters.text_states import TrainedStates
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.config.sections import TextConfig
from konomi.data.batch import Batch, Examples
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.denoising import DenoisingLoss, subject_and_prior_loss
from konomi.methods.lora import Lora
from konomi.methods.lora_settings import LoraConfig
from konomi.methods.method import (
    AdapterMethod,
    Needs,
    ParameterGroup,
    Phase,
    begin_step,
    for_width,
    own_rate,
    placed,
)
from konomi.models.base import BaseModel

STATE_RATE = 1e-3
"""Of the official implementation for Stable Diffusion; the paper takes 2e-3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagicConfig:
    """One picture edited by a text: its text state is found, then a LoRA is trained around it."""

    __pydantic_config__ = STRICT

    kind: Literal["imagic"] = "imagic"
    prompt: str = ""
    """What the edited picture should show, the whole of it: "a sitting dog"."""
    state_steps: Annotated[float, Field(gt=0)] = 0.33
    """Number of steps at the start in which only the text state is optimised; a value below 1 is a
    fraction of all steps."""
    state_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Learning rate of the text state; by default 1e-3, on narrower bases such as `tiny` 2e-3.
    `optimizer.learning_rate` is the LoRA's. With prodigy the
    ratio to the default is used, with lion a fifth of the rate."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The LoRA, as in lora. `method.lora.algorithm = "full"` trains the whole weights of its
    layers, as in the paper."""


class Imagic(AdapterMethod):
    """Trains a text state, then low-rank updates around it."""

    config_type: ClassVar = ImagicConfig
    default_learning_rate: ClassVar = Lora.default_learning_rate

    def __init__(self, config: ImagicConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.denoising = DenoisingLoss(base, recipe)
        self.lora = Lora(config.lora, base, recipe, section="method.lora")

    @staticmethod
    def needs(config: ImagicConfig, base: BaseModel, recipe: Recipe) -> Needs:
        if not config.prompt.strip():
            raise RecipeError(
                "method.prompt: must be set. Say what the edited picture should show: --prompt "
                '"a sitting dog".'
            )
        if recipe.save.format in ("peft", "diffusers"):
            raise RecipeError(
                f"save.format is {recipe.save.format!r}, which holds no text states; imagic writes "
                "them and the LoRA into one file. Use 'kohya'."
            )
        if config.lora.text_rank or config.lora.start:
            name = "text_rank" if config.lora.text_rank else "start"
            raise RecipeError(
                f"method.lora.{name}: imagic trains the denoiser around a text state of the base's "
                "own text encoder. Leave it out."
            )
        lora = Lora.needs(config.lora, base, recipe, section="method.lora")
        unused = placed(lora.unused, "method.lora")
        unused |= {
            "optimizer.text_learning_rate": "the text state learns at method.state_rate.",
            "data.captions.dropout": "every step is conditioned on the text state.",
        }
        return replace(
            lora, unused=unused, predicts_prior=False, edits_towards=config.prompt.strip()
        )

    def default_steps(self, num_images: int) -> int:
        # Official: 500 and 1,000. `tiny` has learned its picture after half of that.
        return for_width(self.base, published=1500, narrow=600)

    def plan(self) -> tuple[Phase, ...]:
        prompt, text = (
            self.config.prompt,
            TextConfig(clip_skip=self.recipe.text.clip_skip, emphasis=True),
        )
        with torch.no_grad():
            target = self.base.encode_captions([prompt], self.base.uncut([prompt], text))
        self.states = TrainedStates(prompt, target.to(self.base.device, torch.float32))
        (lora,) = self.lora.plan()
        self.live = LiveAdapters(self.states, self.lora.layers)
        self._learn(states=True)
        default = for_width(self.base, published=STATE_RATE, narrow=2 * STATE_RATE)
        rate = own_rate(self.recipe.optimizer, self.config.state_rate or default, default)
        # Decay would pull the state towards nothing.
        states = ParameterGroup("text state", self.states.parameters, rate, weight_decay=0.0)
        length = self.config.state_steps
        return (
            Phase(
                name="text state",
                groups=(states,),
                loss=self.state_loss,
                per_example=self._per_example,
                num_steps=round(length) if length >= 1 else None,
                share=length if length < 1 else None,
                modules=(self.base.denoiser,),
            ),
            Phase(
                name="lora",
                groups=lora.groups,
                loss=self.loss,
                per_example=self._per_example,
                modules=lora.modules,
            ),
        )

    def state_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Of the first phase: the LoRA takes no part."""
        self._learn(states=True)
        return self._loss(batch, rng)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Of the second phase: the text state stands still."""
        self._learn(states=False)
        begin_step(self.lora.layers, batch, rng)
        return self._loss(batch, rng)

    def _loss(self, batch: Batch, rng: Rng) -> Tensor:
        return subject_and_prior_loss(
            lambda examples, of_step: self.denoising(self._told(examples), of_step),
            batch,
            rng,
            prior_weight=self.recipe.objective.prior_weight,
        )

    def _per_example(self, examples: Examples, rng: Rng, timesteps_B: Tensor) -> Tensor:
        return self.denoising.per_example(self._told(examples), rng, timesteps_B=timesteps_B)

    def _told(self, examples: Examples) -> Examples:
        """The text state in place of every caption's."""
        return replace(examples, text=self.states.conditioning(len(examples)))

    def _learn(self, *, states: bool) -> None:
        """Gradients reach nothing that the phase's optimiser does not know: those of the first
        phase would leak into the second one's first step."""
        set_requires_grad(self.states, states)
        set_requires_grad(self.lora.layers, not states)
        if states:
            self.lora.layers.detach()
        else:
            self.lora.layers.attach()

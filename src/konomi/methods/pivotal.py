"""Pivotal tuning: first a word, then a LoRA around it (Roich et al. 2021 for GANs; Ryu 2022 for
diffusion models).

Textual Inversion finds the place in the base's vocabulary that comes closest to the subject, the
pivot; from there the LoRA has less to change, and what it learns hangs on the word. Both lie in
one file.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from konomi.adapters.live import LiveAdapters, set_requires_grad
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch, Examples
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.base_requirements import require_added_tokens
from konomi.methods.learned_start import LearnedStart
from konomi.methods.lora import Lora, LoraConfig
from konomi.methods.method import (
    AdapterMethod,
    Needs,
    ParameterGroup,
    Phase,
    begin_step,
    own_rate,
    placed,
    rate_for_width,
)
from konomi.methods.textual_inversion import TextualInversion, TextualInversionConfig
from konomi.models.base import BaseModel

Rate = Annotated[float, Field(ge=0, le=10)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotalConfig:
    """First the embedding of a new word, then a LoRA with it, in one file; for when neither alone
    comes close enough.
    """

    __pydantic_config__ = STRICT

    kind: Literal["pivotal"] = "pivotal"
    word_steps: Annotated[float, Field(gt=0)] = 0.4
    """Number of steps at the start in which only the word's embedding is trained; a value below 1
    is a fraction of all steps."""
    word_rate: Rate | None = None
    """Learning rate of the word's embedding while it is trained alone; by default that of Textual
    Inversion (5e-3). `optimizer.learning_rate` is the LoRA's. With prodigy the ratio to 5e-3 is
    used, with lion a fifth of the rate."""
    word_rate_later: Rate = 0.0
    """Learning rate of the embedding while the LoRA is trained; 0 freezes it. With prodigy the
    ratio to the LoRA's default is used, with lion a fifth of the rate."""
    words: TextualInversionConfig = field(default_factory=TextualInversionConfig)
    """The words, as in textual_inversion."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The LoRA, as in lora."""


class Pivotal(AdapterMethod):
    """Trains the vectors of new words, then low-rank updates that know them."""

    config_type: ClassVar = PivotalConfig
    default_learning_rate: ClassVar = Lora.default_learning_rate

    def __init__(self, config: PivotalConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.inversion = TextualInversion(config.words, base, recipe, section="method.words")
        self.lora = Lora(config.lora, base, recipe, section="method.lora")

    @property
    def learned_start(self) -> LearnedStart | None:
        """Of the words."""
        return self.inversion.learned_start

    @staticmethod
    def needs(config: PivotalConfig, base: BaseModel, recipe: Recipe) -> Needs:
        require_added_tokens(base, config.kind)
        if recipe.save.format in ("peft", "diffusers"):
            raise RecipeError(
                f"save.format is {recipe.save.format!r}, which holds no words; pivotal writes LoRA "
                "and words into one file. Use 'kohya'."
            )
        words = TextualInversion.needs(config.words, base, recipe)
        lora = Lora.needs(config.lora, base, recipe, section="method.lora")
        unused = placed(words.unused, "method.words") | placed(lora.unused, "method.lora")
        # The LoRA decays and has the recipe's rates.
        for path in ("optimizer.weight_decay", "optimizer.learning_rate"):
            unused.pop(path, None)
        return replace(
            lora, trains_text=True, unused=unused, for_bare_images=("method.words.templates",)
        )

    def default_steps(self, num_images: int) -> int:
        # The pivot need not be found to the last digit: the LoRA does the rest.
        return self.inversion.default_steps(num_images) // 2 + self.lora.default_steps(num_images)

    def plan(self) -> tuple[Phase, ...]:
        (inversion,) = self.inversion.plan()
        (lora,) = self.lora.plan()
        self.live = LiveAdapters(self.inversion.tokens, self.lora.layers)
        self._learn(words=True, lora=False)
        # The rates of the recipe are the LoRA's; a schedule holds for both.
        optimizer, later = self.recipe.optimizer, self.config.word_rate_later
        words_default = TextualInversion.default_learning_rate
        word_rate = words_default if self.config.word_rate is None else self.config.word_rate
        alone = self._words(own_rate(optimizer, word_rate, words_default))
        lora_default = rate_for_width(Lora.default_learning_rate, self.base)
        beside = (self._words(own_rate(optimizer, later, lora_default)),) if later else ()
        length = self.config.word_steps
        return (
            Phase(
                name="word",
                groups=(alone,),
                loss=self.word_loss,
                num_steps=round(length) if length >= 1 else None,
                share=length if length < 1 else None,
                modules=inversion.modules,
            ),
            Phase(
                name="lora",
                groups=(*lora.groups, *beside),
                loss=self.loss,
                modules=(*lora.modules, *inversion.modules),
            ),
        )

    def captioned(self, examples: Examples, rng: Rng) -> Examples:
        """The word in every caption, as Textual Inversion has it."""
        return self.inversion.captioned(examples, rng)

    def word_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Of the first phase. The LoRA takes no part, unless it goes on from a file."""
        self._learn(words=True, lora=False)
        begin_step(self.lora.layers, batch, rng)
        return self.inversion.loss(batch, rng)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Of the second phase."""
        self._learn(words=self.config.word_rate_later > 0, lora=True)
        return self.lora.loss(
            replace(batch, subject=self.inversion.captioned(batch.subject, rng)), rng
        )

    def _words(self, rate: float) -> ParameterGroup:
        return ParameterGroup("words", self.inversion.tokens.parameters, rate, weight_decay=0.0)

    def _learn(self, *, words: bool, lora: bool) -> None:
        """Gradients reach nothing that the phase's optimiser does not know: they would pile up."""
        set_requires_grad(self.inversion.tokens, words)
        set_requires_grad(self.lora.layers, lora)
        # At its start it changes nothing, and would only cost time.
        if lora or self.config.lora.start:
            self.lora.layers.attach()
        else:
            self.lora.layers.detach()

"""Textual Inversion: teach the base a new word (Gal et al. 2022, "An Image is Worth One Word").

The word stands for a few vectors in place of token embeddings, and only those are learned: v* =
argmin over v of E |e - e_theta(z_t, t, c(caption with v))|^2. The base, its token table too, stays
bit for bit as it was.

Shapes: n vectors of a word, D width of a text encoder's token embeddings.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from konomi.adapters.tokens import KeepNorm, TrainedTokens, repeated
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.config.sections import SourceConfig
from konomi.data.batch import Batch, Examples
from konomi.data.captions import has_trigger
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.base_requirements import require_added_tokens
from konomi.methods.denoising import DenoisingLoss, subject_and_prior_loss
from konomi.methods.learned_start import leap_start, unused_network
from konomi.methods.method import (
    AdapterMethod,
    Needs,
    ParameterGroup,
    Phase,
    for_width,
    learning_rates,
)
from konomi.models.base import BaseModel

Templates = Literal["object", "style", "none"]

TEMPLATES: dict[Templates, tuple[str, ...]] = {
    "object": (
        "a photo of {}",
        "a picture of {}",
        "a rendering of {}",
        "a close-up photo of {}",
        "a cropped photo of {}",
        "a bright photo of {}",
        "a dark photo of {}",
        "a good photo of {}",
        "{}",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a rendering in the style of {}",
        "a close-up painting in the style of {}",
        "a cropped painting in the style of {}",
        "a bright painting in the style of {}",
        "a dark painting in the style of {}",
        "a small painting in the style of {}",
        "{}",
    ),
    "none": ("{}",),
}
"""What stands around a word that is a caption alone; one is drawn for each image and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextualInversionConfig:
    """The embedding of a new word; the smallest file, and the base stays unchanged."""

    __pydantic_config__ = STRICT

    kind: Literal["textual_inversion"] = "textual_inversion"
    word: Annotated[str, Field(min_length=1)] = "sks"
    """The word to learn if no source has a trigger. Each distinct trigger becomes a word of its
    own."""
    vectors: Annotated[int, Field(ge=1, le=75)] = 4
    """Number of embedding vectors for the word. More vectors hold more detail, but take up more of
    a prompt's 75 tokens."""
    initial: str = ""
    """What the vectors are initialised from: words that the base knows, repeated if there are fewer
    of them than vectors; or `leap`, a network's guess from the images (`konomi learn-start`; the
    word itself is written `Leap`). If empty, the class noun, and without one, noise with the
    statistics of the base's token embeddings."""
    initial_file: str = ""
    """The network of `initial = "leap"`; by default the one that `konomi learn-start` wrote for the
    base, or konomi's own for `tiny`."""
    keep_norm: KeepNorm = "none"
    """Norm of the vectors: unconstrained, `clip` to at most the mean norm of the base's token
    embeddings, or `rescale` to it. Keeps the word from overpowering the rest of a prompt."""
    templates: Templates = "object"
    """Prompt template for images without a caption of their own: `object` (a photo of ...), `style`
    (a painting in the style of ...) or `none`. A source's own template takes precedence."""


class TextualInversion(AdapterMethod):
    """Trains the vectors of new words."""

    config_type: ClassVar = TextualInversionConfig
    default_learning_rate: ClassVar = 5e-3

    def __init__(
        self,
        config: TextualInversionConfig,
        base: BaseModel,
        recipe: Recipe,
        *,
        section: str = "method",
    ) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.sources = sources_by_word(recipe, config.word)
        self.denoising = DenoisingLoss(base, recipe)
        self.learned_start = leap_start(
            base,
            recipe.base,
            config.initial,
            config.initial_file,
            tuple(self.sources),
            setting=f"{section}.initial_file",
        )

    @staticmethod
    def needs(config: TextualInversionConfig, base: BaseModel, recipe: Recipe) -> Needs:
        require_added_tokens(base, config.kind)
        sources = sources_by_word(recipe, config.word)
        unused = {"optimizer.weight_decay": "words are not pulled towards zero."}
        unused |= unused_network(config.initial, config.initial_file)
        if config.word not in sources:
            unused["method.word"] = (
                f"the triggers of the sources are the words: {', '.join(sources)}."
            )
        if recipe.optimizer.text_learning_rate is not None:
            unused["optimizer.learning_rate"] = "the words learn at optimizer.text_learning_rate."
        return Needs(
            trains_text=True,
            pixels=base.inpainting,
            makes="embedding",
            unused=unused,
            for_bare_images=("method.templates",),
        )

    def default_steps(self, num_images: int) -> int:
        # The paper takes 5,000 steps for 3 to 5 images (section 4), diffusers' guide 3,000 for 5.
        least, each, most = for_width(
            self.base, published=(1000, 600, 5000), narrow=(300, 60, 3000)
        )
        return min(max(each * num_images, least), most)

    def plan(self) -> tuple[Phase, ...]:
        tables = {part: _token_table(self.base, part) for part in self.base.text_encoders}
        norms = {part: float(table.norm(dim=1).mean()) for part, table in tables.items()}
        start = {word: self._start(word, tables) for word in self.sources}
        self.live = self.tokens = TrainedTokens(
            self.base.added_tokens, start, keep_norm=self.config.keep_norm, norms=norms
        )
        rate, _ = learning_rates(self.recipe.optimizer, self.default_learning_rate)
        text_rate = self.recipe.optimizer.text_learning_rate
        # Decay would pull a word towards nothing.
        group = ParameterGroup(
            "words", self.tokens.parameters, rate if text_rate is None else text_rate, 0.0
        )
        modules = (self.base.denoiser, *self.base.text_encoders.values())
        return (Phase("textual_inversion", (group,), self.loss, modules=modules),)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        batch = replace(batch, subject=self.captioned(batch.subject, rng))
        loss = subject_and_prior_loss(
            self.denoising, batch, rng, prior_weight=self.recipe.objective.prior_weight
        )
        if loss.requires_grad:
            return loss
        # Captions that were all dropped hold no word: nothing to learn in this step.
        return loss + sum(
            (0.0 * vectors.sum() for vectors in self.tokens.parameters.values()),
            torch.zeros_like(loss),
        )

    def captioned(self, examples: Examples, rng: Rng) -> Examples:
        """The word in every caption: in front where it is missing, in a template where it is all
        there is.
        """
        captions = [self._with_word(caption) for caption in examples.captions]
        alone = [self._alone(caption) for caption in captions]
        if any(alone):
            templates = TEMPLATES[self.config.templates]
            draws = (
                rng.for_samples(examples.sample_ids)
                .fork("template")
                .integers(0, len(templates))
                .tolist()
            )
            captions = [
                templates[draw].format(word) if word else caption
                for caption, word, draw in zip(captions, alone, draws, strict=True)
            ]
        return replace(examples, captions=tuple(captions))

    def _with_word(self, caption: str) -> str:
        # A dropped caption stays empty; with a trigger in the source the word is in its captions
        # already.
        if (
            not caption
            or any(has_trigger(caption, word) for word in self.sources)
            or len(self.sources) > 1
        ):
            return caption
        return f"{next(iter(self.sources))}, {caption}"

    def _alone(self, caption: str) -> str:
        """The word that a caption consists of, perhaps with its class noun; "" if there is more to
        it.
        """
        for word, source in self.sources.items():
            if caption in (word, f"{word} {source.class_noun}" if source else word):
                return word
        return ""

    def _start(self, word: str, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        """Part -> [n, D]."""
        source, count = self.sources[word], self.config.vectors
        if self.learned_start is not None:
            return self.learned_start.start(word, count, tables)
        initial = self.config.initial or (source.class_noun if source else "")
        if initial:
            known = self.base.token_vectors(initial)
            return {part: repeated(known[part], count) for part in tables}
        start = {}
        for part, table_VD in tables.items():
            noise = (
                Rng.for_step(self.recipe.run.seed, 0)
                .fork(f"start {word} {part}")
                .normal((count, table_VD.shape[1]))
            )
            start[part] = table_VD.mean(0) + table_VD.std(0) * noise[0].to(table_VD.device)
        return start


def sources_by_word(recipe: Recipe, default: str) -> dict[str, SourceConfig | None]:
    """The words to learn, each with the source that brings it.

    Raises RecipeError where some sources have a trigger and others none, or two words differ in
    case alone.
    """
    sources = [source for source in recipe.data.sources if source.role == "train"]
    triggers: dict[str, SourceConfig | None] = {}
    for source in sources:
        triggers.setdefault(source.trigger, source)
    if "" in triggers and len(triggers) > 1:
        source = next(source for source in sources if not source.trigger)
        raise RecipeError(
            f"{source.path}: has no trigger, and other sources have one. Give each its word to "
            "learn."
        )
    words = {trigger or default: source for trigger, source in triggers.items()} or {default: None}
    if len({word.casefold() for word in words}) < len(words):
        raise RecipeError(
            f"the words {', '.join(words)} differ only in upper and lower case: choose others."
        )
    return words


def _token_table(base: BaseModel, part: str) -> Tensor:
    """Token embeddings of a text encoder, float32 [V, D]."""
    return base.token_embedding(part).detach().float()

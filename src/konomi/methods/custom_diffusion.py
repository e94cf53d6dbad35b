"""Custom Diffusion (Kumari et al. 2022, "Multi-Concept Customization of Text-to-Image Diffusion").

What a picture takes from its text goes through the keys and values of cross-attention: W_k c and
W_v c of the text states c. Only these matrices learn, and for each subject the embedding of a word
of its own. Several subjects are learned together, each under its word; or apart, and merged in
closed form (`konomi merge custom`). The first position, the same for every caption, carries no
gradient, so that it does not learn the subject in the caption's stead.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from konomi.adapters.live import LiveAdapters
from konomi.adapters.tokens import TrainedTokens
from konomi.adapters.weight_change import WeightChanges
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch, Examples
from konomi.data.size_variation import draw_size_changes, with_sizes_varied
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.base_requirements import require_added_tokens, require_layers
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

RARE_WORDS = (
    "ktn", "pll", "ucd", "phol", "ohwx", "zwx", "xjy", "qvk", "znt", "vxq", "jkq", "mqv",
    "wafc", "nlwx", "pafc", "rcn", "omd", "wbo", "ucn", "ccu",
)  # fmt: skip
"""What words start from: the authors' three, then such as mean little to CLIP or to `tiny`. Those
of several tokens are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomDiffusionConfig:
    """The key and value matrices of cross-attention, plus a new word for each subject; several
    subjects can be merged afterwards.
    """

    __pydantic_config__ = STRICT

    kind: Literal["custom_diffusion"] = "custom_diffusion"
    words: tuple[str, ...] = ()
    """The words to learn, one per subject; by default the triggers of the sources."""
    initial: tuple[str, ...] = ()
    """What each word's embedding is initialised from: words of one token each; or `leap` alone, a
    network's guess from each subject's images (`konomi learn-start`). By default rare ones (ktn,
    pll, ucd, ...)."""
    initial_file: str = ""
    """The network of `initial = ["leap"]`; by default the one that `konomi learn-start` wrote for
    the base, or konomi's own for `tiny`."""
    size_augmentation: bool = True
    """Also show subjects far away and close up, with captions that say so. Images are then encoded
    in every step."""


class CustomDiffusion(AdapterMethod):
    """Trains keys and values of cross-attention, and words."""

    config_type: ClassVar = CustomDiffusionConfig
    default_learning_rate: ClassVar = 1e-5
    """For each picture of a step, class images too (the authors' `scale_lr`): 2e-5 for a subject
    beside its class."""
    narrow_learning_rate: ClassVar = 1e-4
    """On `tiny`, where it was measured, whatever the batch."""

    def __init__(self, config: CustomDiffusionConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.names = _names(config, recipe)
        self.learned_start = leap_start(
            base, recipe.base, _initial(config), config.initial_file, self.names
        )
        # A picture's own mask counts if the recipe says so; where it was pasted counts always.
        self.denoising = DenoisingLoss(
            base, replace(recipe, objective=replace(recipe.objective, masked=True))
        )

    @staticmethod
    def needs(config: CustomDiffusionConfig, base: BaseModel, recipe: Recipe) -> Needs:
        require_added_tokens(base, config.kind)
        require_layers(base, config.kind, ("cross_attention.kv",))
        _names(config, recipe)
        pixels = config.size_augmentation or base.inpainting
        return Needs(
            trains_text=True,
            pixels=pixels,
            makes="custom diffusion",
            unused=unused_network(_initial(config), config.initial_file),
        )

    def default_steps(self, num_images: int) -> int:
        return min(max(100 * num_images, 500), 2000)

    def plan(self) -> tuple[Phase, ...]:
        start = {name: self._start(name, index) for index, name in enumerate(self.names)}
        self.tokens = TrainedTokens(self.base.added_tokens, start)
        # Each chunk begins with a start token of its own, unless the inner ones are stripped.
        every = (
            self.base.text_traits.num_positions
            if self.recipe.text.chunking == "novelai"
            else self.recipe.text.max_tokens + 2
        )
        self.changes = WeightChanges(
            self.base.select_layers("cross_attention.kv"), frozen_every=every
        )
        self.live = LiveAdapters(self.tokens, self.changes)
        return (
            Phase("custom_diffusion", self._groups(), self.loss, modules=(self.base.denoiser,)),
        )

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        subject = self._with_mask_as_asked(batch.subject)
        if self.config.size_augmentation and subject.pixels is not None:
            changes = draw_size_changes(rng.for_samples(subject.sample_ids).fork("size"))
            subject = with_sizes_varied(subject, changes, latent_factor=self.base.latent_factor)
        prior = None if batch.prior is None else self._with_mask_as_asked(batch.prior)
        batch = replace(batch, subject=subject, prior=prior)
        loss = subject_and_prior_loss(
            self.denoising, batch, rng, prior_weight=self.recipe.objective.prior_weight
        )
        # A word that no caption of this pass has gets a gradient of zero, not none: the optimiser
        # would pass over it, and whether it does would depend on how the batch is divided.
        return loss + 0.0 * sum(vectors.sum() for vectors in self.tokens.parameters.values())

    def _with_mask_as_asked(self, examples: Examples) -> Examples:
        return examples if self.recipe.objective.masked else replace(examples, loss_mask=None)

    def _groups(self) -> tuple[ParameterGroup, ...]:
        published = self.default_learning_rate * _pictures_in_a_step(self.recipe)
        default = for_width(self.base, published=published, narrow=self.narrow_learning_rate)
        rate, _ = learning_rates(self.recipe.optimizer, default)
        text_rate = self.recipe.optimizer.text_learning_rate
        matrices = {
            f"{key}.change": parameter for key, parameter in self.changes.parameters.items()
        }
        return (
            ParameterGroup("denoiser", matrices, rate),
            # Decay would pull a word towards nothing, a change towards the base.
            ParameterGroup(
                "words",
                self.tokens.parameters,
                rate if text_rate is None else text_rate,
                weight_decay=0.0,
            ),
        )

    def _start(self, name: str, index: int) -> dict[str, Tensor]:
        """Part -> [1, D] for word number `index`."""
        if self.learned_start is not None:
            tables = {part: self.base.token_embedding(part) for part in self.base.text_encoders}
            return self.learned_start.start(name, 1, tables)
        given = self.config.initial
        if given and len(given) != len(self.names):
            raise RecipeError(
                f"method.initial names {len(given)} words; {len(self.names)} are to be learned."
            )
        found = [vectors for word in given or RARE_WORDS if (vectors := self._single_token(word))]
        if given and len(found) < len(given):
            bad = next(word for word in given if not self._single_token(word))
            raise RecipeError(
                f"method.initial: {bad!r} is more than one token of this base. Choose another word."
            )
        if index >= len(found):
            raise RecipeError(
                f"this base knows too few rare words for {name!r}: name one for each in "
                "method.initial."
            )
        return found[index]

    def _single_token(self, word: str) -> dict[str, Tensor] | None:
        vectors = dict(self.base.token_vectors(word))
        return vectors if all(len(vectors_nD) == 1 for vectors_nD in vectors.values()) else None


def _initial(config: CustomDiffusionConfig) -> str:
    return config.initial[0] if len(config.initial) == 1 else ""


def _pictures_in_a_step(recipe: Recipe) -> int:
    """Subjects, and as many class images where there are any that count."""
    beside = recipe.prior.source in ("images", "generate", "transparent")
    return recipe.run.batch_size * (2 if beside and recipe.objective.prior_weight else 1)


def _names(config: CustomDiffusionConfig, recipe: Recipe) -> tuple[str, ...]:
    """The words to learn. Raises RecipeError where a source has none, or two words are one."""
    sources = [source for source in recipe.data.sources if source.role == "train"]
    names = tuple(dict.fromkeys(config.words or [source.trigger for source in sources] or ["sks"]))
    if "" in names:
        where = next((source.path for source in sources if not source.trigger), "method.words")
        raise RecipeError(
            f"{where}: custom_diffusion learns a word for each subject. Give it one: --trigger "
            "WORD, trigger in data.sources, or method.words where the captions have it already."
        )
    if len({name.casefold() for name in names}) < len(names):
        raise RecipeError(
            f"the words {', '.join(names)} differ only in upper and lower case: choose others."
        )
    return names

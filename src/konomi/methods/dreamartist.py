"""DreamArtist (Dong et al. 2022, "DreamArtist: Towards Controllable One-Shot Text-to-Image
Generation via Positive-Negative Prompt-Tuning"): one image teaches a word what it is, and another
word what it is not.

Textual Inversion from a single image learns the image, not the subject. Here guidance is part of
training: a word X in the positive prompt and a word X-neg in the negative one are learned
together, both through the guided prediction e = e_neg + s (e_pos - e_neg). X may exaggerate, since
X-neg takes back what is too much; so less of the image itself is learned. Only the words' vectors
train; in DreamArtist++ also a LoRA for each of the two branches.

Shapes: B batch, D width of a text encoder's token embeddings.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from konomi.adapters.branches import BranchLayers
from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import TrainedLayers, inject
from konomi.adapters.live import LiveAdapters
from konomi.adapters.tokens import TrainedTokens, repeated
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch, Examples
from konomi.diffusion.conditioning import concatenate
from konomi.diffusion.random import Rng, stable_hash
from konomi.errors import RecipeError
from konomi.formats.embedding_metadata import NEGATIVE
from konomi.methods.base_requirements import require_added_tokens
from konomi.methods.denoising import DenoisingLoss, Noised, subject_and_prior_loss
from konomi.methods.layer_selectors import chosen_modules
from konomi.methods.learned_start import leap_start, unused_network
from konomi.methods.method import (
    AdapterMethod,
    Needs,
    ParameterGroup,
    Phase,
    learning_rates,
    own_rate,
)
from konomi.models.base import BaseModel

Guidance = Annotated[float, Field(ge=1, le=50)]
Vectors = Annotated[int, Field(ge=1, le=70)]
Rate = Annotated[float, Field(gt=0, le=1)]

_SPREAD = 1e-3
"""Standard deviation of what sets the negative word apart at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamArtistConfig:
    """A new word for the prompt and its counterpart for the negative prompt, from one image."""

    __pydantic_config__ = STRICT

    kind: Literal["dreamartist"] = "dreamartist"
    vectors: Vectors = 3
    """Number of tokens for the word to learn, which is the trigger of the sources."""
    negative_vectors: Vectors = 6
    """Number of tokens for its counterpart in the negative prompt, called WORD-neg."""
    start: str = "*"
    """What both are initialised from: a word that the base knows. With `leap` the word starts from
    a network's guess from the image (`konomi learn-start`), its counterpart from `*`."""
    start_file: str = ""
    """The network of `start = "leap"`; by default the one that `konomi learn-start` wrote for the
    base, or konomi's own for `tiny`."""
    guidance: Guidance = 3.0
    """Guidance scale s, from the negative word's prediction to the positive one's; 5 in the paper's
    APT."""
    low_guidance: Guidance | None = None
    """Dynamic guidance: the guidance scale at t = 0, from which it rises along a cosine to
    `guidance` at pure noise. By default the scale is constant."""
    reconstruction: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the L1 loss between the decoded estimate and the image (1). Sharper results, but
    gradients then pass through the VAE decoder in every step, which costs time and memory."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """If above 0, also train a LoRA of this rank for each branch (DreamArtist++)."""
    lora_rate: Rate = 1e-4
    """Learning rate of the positive LoRA. With prodigy the ratio to the words' default of 3e-3 is
    used, with lion a fifth of the rate."""
    negative_lora_rate: Rate = 4e-5
    """Learning rate of the negative LoRA; prodigy and lion treat it in the same way."""
    targets: tuple[str, ...] = ("transformer",)
    """Which layers the LoRAs train: groups, blocks and patterns, as in the setting of the same name
    of `lora`."""


class DreamArtist(AdapterMethod):
    """Trains two words, and perhaps two LoRAs, through guidance."""

    config_type: ClassVar = DreamArtistConfig
    default_learning_rate: ClassVar = 3e-3

    def __init__(self, config: DreamArtistConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.word = _word(recipe)
        self.negative_word = self.word + NEGATIVE
        self.denoising = DenoisingLoss(base, recipe)
        self.lora: BranchLayers | None = None
        self.learned_start = leap_start(
            base,
            recipe.base,
            config.start,
            config.start_file,
            (self.word,),
            setting="method.start_file",
        )

    @staticmethod
    def needs(config: DreamArtistConfig, base: BaseModel, recipe: Recipe) -> Needs:
        require_added_tokens(base, config.kind)
        if config.lora_rank and recipe.save.format in ("diffusers", "peft"):
            raise RecipeError(
                f"save.format is {recipe.save.format!r}, which cannot say that a LoRA is for one "
                "branch of guidance. Use 'kohya'."
            )
        if config.targets != DreamArtistConfig().targets:
            chosen_modules(base.meta_copy(), config.targets, "method.targets")
        _word(recipe)
        return Needs(
            trains_text=True,
            pixels=base.inpainting or config.reconstruction > 0,
            makes="lora" if config.lora_rank else "embedding",
            unused=_unused(config),
        )

    def default_steps(self, num_images: int) -> int:
        # The paper goes up to 8,000. A base of small pictures has learned what it can after some
        # hundred.
        return 3000 if self.base.resolution >= 512 else 400

    def plan(self) -> tuple[Phase, ...]:
        start = {
            self.word: self._start(negative=False),
            self.negative_word: self._start(negative=True),
        }
        self.tokens = TrainedTokens(self.base.added_tokens, start)
        if self.config.lora_rank:
            self.lora = BranchLayers(self._inject("positive"), self._inject("negative"))
        self.live = self.tokens if self.lora is None else LiveAdapters(self.tokens, self.lora)
        modules = (*self.base.text_encoders.values(), self.base.denoiser)
        return (Phase("dreamartist", self._groups(), self.loss, self.per_example, modules=modules),)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        prior_weight = self.recipe.objective.prior_weight
        return subject_and_prior_loss(self.guided_loss, batch, rng, prior_weight=prior_weight)

    def guided_loss(self, examples: Examples, rng: Rng) -> Tensor:
        """The mean loss of the guided prediction, a scalar."""
        rng = rng.for_samples(examples.sample_ids)
        noised = self.denoising.add_noise(examples, rng)
        noise_pred = self.guided(examples, noised, rng)
        loss_B = self.denoising.loss_of(noise_pred, noised, examples)
        if self.config.reconstruction:
            loss_B = loss_B + self.config.reconstruction * self.reconstruction_error(
                examples, noised, noise_pred
            )
        return loss_B.mean()

    def per_example(self, examples: Examples, rng: Rng, timesteps_B: Tensor) -> Tensor:
        """What validation measures, [B]: the guided prediction, with both branches as in
        training.
        """
        rng = rng.for_samples(examples.sample_ids)
        noised = self.denoising.add_noise(examples, rng, timesteps_B=timesteps_B)
        with nullcontext() if self.lora is None else self.lora.both_branches():
            noise_pred = self.guided(examples, noised, rng)
        return self.denoising.loss_of(noise_pred, noised, examples)

    def guided(self, examples: Examples, noised: Noised, rng: Rng) -> Tensor:
        """e_neg + s (e_pos - e_neg), float32: both branches in one pass, with the same noise at
        the same timestep.
        """
        opposite = replace(examples, captions=(self.negative_word,) * len(examples))
        negative = self.denoising.condition(opposite, rng, noised.latents)
        positive = self.denoising.condition(examples, rng, noised.latents)
        twice = torch.cat([noised.noisy_latents] * 2), torch.cat([noised.timesteps_B] * 2)
        below, above = self.base.predict(*twice, concatenate([negative, positive])).float().chunk(2)
        return below + self.guidance(noised.timesteps_B) * (above - below)

    def guidance(self, timesteps_B: Tensor) -> Tensor:
        """s, [B, 1, 1, 1]: fixed, or low + (high - low) cos((t / (T - 1) - 1) pi / 2)."""
        high, low = self.config.guidance, self.config.low_guidance
        if low is None:
            return torch.full_like(timesteps_B, high, dtype=torch.float32).view(-1, 1, 1, 1)
        share = self.denoising.process.fraction_at(timesteps_B)
        return (low + (high - low) * torch.cos((share - 1) * (math.pi / 2))).view(-1, 1, 1, 1)

    def reconstruction_error(
        self, examples: Examples, noised: Noised, noise_pred: Tensor
    ) -> Tensor:
        """Mean |D(z_0 as the prediction has it) - image|, [B], weighted by the mask like the other
        loss.
        """
        if examples.pixels is None:
            raise AssertionError("the reconstruction loss needs pixels in every step")
        pred_original = self.denoising.process.pred_original_sample(
            noise_pred, noised.noisy_latents, noised.timesteps_B
        )
        error = (self.base.decode_latents(pred_original) - examples.pixels).abs()
        if examples.loss_mask is not None and self.recipe.objective.masked:
            error = error * functional.interpolate(
                examples.loss_mask, size=error.shape[2:], mode="nearest"
            )
        return error.flatten(1).mean(1)

    def _start(self, *, negative: bool) -> dict[str, Tensor]:
        """Part -> vectors [n, D]."""
        count = self.config.negative_vectors if negative else self.config.vectors
        learned = self.learned_start
        known = self.base.token_vectors(self.config.start if learned is None else "*")
        if learned is not None and not negative:
            return learned.start(self.word, count, known)
        start = {part: repeated(known_nD, count) for part, known_nD in known.items()}
        if not negative:
            return start
        rng = Rng.for_step(self.recipe.run.seed, 0).fork("dreamartist")
        spread = {
            part: rng.fork(part).normal(vectors.shape)[0].to(vectors.device)
            for part, vectors in start.items()
        }
        return {part: vectors + _SPREAD * spread[part] for part, vectors in start.items()}

    def _inject(self, branch: str) -> TrainedLayers:
        modules = chosen_modules(self.base, self.config.targets, "method.targets")
        if not modules:
            raise RecipeError(
                "method.targets is empty: the LoRAs of method.lora_rank would change nothing."
            )
        spec = LoraSpec(rank=self.config.lora_rank, alpha=float(self.config.lora_rank))
        layers = inject(modules, lambda key: spec, seed=stable_hash(self.recipe.run.seed, branch))
        layers.detach()
        return layers

    def _groups(self) -> tuple[ParameterGroup, ...]:
        optimizer = self.recipe.optimizer
        rate, _ = learning_rates(optimizer, self.default_learning_rate)
        # Decay would pull a word towards nothing.
        groups = [ParameterGroup("words", self.tokens.parameters, rate, weight_decay=0.0)]
        branches = {} if self.lora is None else self.lora.branches
        rates = {"positive": self.config.lora_rate, "negative": self.config.negative_lora_rate}
        for branch, layers in branches.items():
            # Also with `optimizer.rates`, which are the words' and whose course the LoRAs follow.
            own = own_rate(optimizer, rates[branch], self.default_learning_rate)
            named = {f"{branch}.{name}": parameter for name, parameter in layers.parameters.items()}
            groups.append(ParameterGroup(branch, named, own))
        return tuple(groups)


def _unused(config: DreamArtistConfig) -> dict[str, str]:
    """Settings that another one switches off."""
    found = {
        "optimizer.text_learning_rate": "the words learn at optimizer.learning_rate, and nothing "
        "else is text."
    }
    if not config.lora_rank:
        reason = "method.lora_rank is 0, so there are no LoRAs."
        found |= {
            f"method.{name}": reason for name in ("lora_rate", "negative_lora_rate", "targets")
        }
        found["optimizer.weight_decay"] = "words are not pulled towards zero."
    found |= unused_network(config.start, config.start_file, section_setting="start_file")
    if config.low_guidance == config.guidance:
        found["method.low_guidance"] = "it is the same as method.guidance."
    return found


def _word(recipe: Recipe) -> str:
    """The word to learn. Raises RecipeError where there is none, or more than one."""
    sources = [source for source in recipe.data.sources if source.role == "train"]
    words = dict.fromkeys(source.trigger for source in sources)
    if len(words) > 1:
        raise RecipeError(
            f"dreamartist learns one word in a run, not {len(words)}: give all sources the same "
            "trigger."
        )
    word = next(iter(words), "sks")
    if not word.strip():
        raise RecipeError("dreamartist learns a word: give it with --trigger WORD.")
    if word.casefold().endswith(NEGATIVE):
        raise RecipeError(
            f"{word!r} is what the counterpart of a word is called: choose one without {NEGATIVE}."
        )
    return word

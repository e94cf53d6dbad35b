"""What sets one architecture apart from another: the one thing that `models/` asks what a base is
made of.

A family names its architecture (`Family.architecture`). Whatever differs between kinds of networks
(their modules and configs, how text is read, how the denoiser is called) is an attribute of the
object of that name in `konomi.models.architectures`. It has no state: one object serves all bases.

Shapes: B batch, C latent channels, h w latent grid, n vectors, D text width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from konomi.config.sections import TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.noise import Prediction
from konomi.families.family import Family, Part, PartSpec
from konomi.models.source import AnyTokenizer, Configs, PartSource, StoredTokenizer
from konomi.models.tensor_files import TensorFile

if TYPE_CHECKING:
    from konomi.models.latent_diffusion import LatentDiffusion
    from konomi.models.tokenizer import Vocabulary

AddedTokens = Mapping[str, Mapping[str, Tensor]]
"""Learned word -> {part of the text encoder: vectors [n, D]}."""
NO_TOKENS: AddedTokens = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRules:
    """What is known of the config of one part."""

    checks: Mapping[str, Callable[[object], bool]]
    """Setting -> whether a value is one that a model of this kind may have."""
    required: tuple[str, ...] = ()
    nullable: tuple[str, ...] = ()
    """Settings for which null is not the same as their absence, the default."""
    known: frozenset[str] | None = None
    """Settings that are read or change nothing: all others are named as not used. None: no
    setting is."""
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Settings that konomi does not apply -> the values with which they change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTraits:
    """What the settings of text, and the syntax of prompts, mean to a base."""

    num_positions: int
    """Positions of one text or, where there are chunks, of a chunk; start and end included."""
    longest: int | None = None
    """Tokens that are read of a text, whatever the settings say; None: chunks, as many as
    `text.max_tokens` asks for."""
    chooses_layer: bool = True
    """`text.clip_skip` says which layer is read."""
    has_emphasis: bool = True
    """Brackets, BREAK and `a:0.7 | b:0.3` are read."""

    def limit(self, text: TextConfig) -> int:
        """Tokens that are read of a caption; what follows is cut off."""
        return text.max_tokens if self.longest is None else self.longest

    def unused(self) -> dict[str, str]:
        """Settings of `[text]` that the base does not read: path -> why, in a sentence."""
        found = {}
        if self.longest is not None:
            found["text.max_tokens"] = (
                f"the base's text encoder reads {self.longest} tokens of a caption in any case."
            )
            found["text.chunking"] = "the base's text encoder has no chunks."
        if not self.chooses_layer:
            found["text.clip_skip"] = "the base's text encoder is read at one layer."
        if not self.has_emphasis:
            found["text.emphasis"] = "the base's text encoder has no weights of words."
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a base's configs say of it."""

    resolution: int
    """Native side in pixels."""
    latent_channels: int
    latent_factor: int
    """Pixels per latent cell."""
    latent_scale: float
    latent_shift: float = 0.0
    """The denoiser works on (latent - shift) * scale."""
    width: int
    """Channels of the denoiser, of a U-Net at its first level."""
    inpainting: bool = False
    """The denoiser also reads a mask and the masked image's latents."""
    casts_weights: bool = False
    """The denoiser's layers are those of `konomi.models.unet_layers`, which can keep weights
    smaller than they compute."""
    text: TextTraits


@dataclass(frozen=True, slots=True)
class LoadedTextEncoder:
    """One text encoder and how a family reads it."""

    part: str
    tokenizer: Any
    """As its `StoredTokenizer` opens it."""
    module: Any
    """As the architecture builds it."""
    layer: int = 1
    """Whose output is read where the recipe leaves it open, from the end: 1 the last, 2 the one
    before."""
    final_norm: bool = True
    """Whether the final layer norm follows, also after skipped layers."""
    pooled: bool = False
    """Whether this text encoder gives the pooled vector."""
    missing_layers: int = 0
    """Layers at the end that the base's file lacks; they are there in name only."""


class SingleFile(Protocol):
    """How a whole model lies in one file."""

    def open(
        self, file: TensorFile, family: Family, *, prediction: Prediction | None, needs_vae: bool
    ) -> PartSource:
        """The parts of a file of this family. Raises ModelError or FileFormatError, also where it
        holds no VAE and needs one.
        """
        ...

    def tensors(
        self, base: "LatentDiffusion", part: Part, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """A part's tensors under the names that they have in the file. Raises ModelError where one
        has none.
        """
        ...

    def metadata(self, base: "LatentDiffusion", content: Mapping[str, Tensor]) -> dict[str, str]:
        """What the file says of itself besides. content: all its tensors."""
        ...


class Architecture(Protocol):
    """One kind of denoiser, text encoders and autoencoder."""

    @property
    def name(self) -> str:
        """What families call it."""
        ...

    @property
    def single_file(self) -> SingleFile | None:
        """None: a base is a diffusers folder and nothing else."""
        ...

    @property
    def obsolete(self) -> tuple[str, ...]:
        """Names of tensors that old files hold and no module has."""
        ...

    def rules(self, spec: PartSpec) -> ConfigRules:
        """What is known of a part's config."""
        ...

    def fill(self, family: Family, configs: dict[str, dict[str, Any]]) -> None:
        """Write what old configs leave out into those that are there; none has been checked."""
        ...

    def check(self, family: Family, configs: Configs) -> None:
        """Raises ModelError for configs that do not go together, of those that are there. Each has
        been checked by its rules.
        """
        ...

    def facts(self, family: Family, configs: Configs) -> Facts:
        """What configs say that have been checked."""
        ...

    def build(self, spec: PartSpec, config: Mapping[str, Any]) -> nn.Module:
        """The module of a part. Its parameters have canonical names: diffusers' for denoiser and
        autoencoder, transformers' for text encoders.

        A denoiser and a text encoder have `enable_gradient_checkpointing()` and
        `disable_gradient_checkpointing()`; an autoencoder has `encode(pixels)`, which gives mean
        and standard deviation of the latents [B, C, h, w], and `decode(latents)`, both unscaled. A
        module that has `initialise()` draws its own random weights there. What this raises for a
        config is told as a config that describes no model.
        """
        ...

    def canonical(self, spec: PartSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a diffusers folder, of any age, under canonical names."""
        ...

    def predict(
        self,
        denoiser: nn.Module,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """The denoiser's prediction [B, C, h, w] for noisy latents of any number format, at
        timesteps [B] of the base's noise process. The conditioning has every field that the base
        reads, and no other.
        """
        ...

    def read_tokenizer(self, folder: Path) -> StoredTokenizer:
        """The tokenizer in a folder. Only data is read. Raises ModelError for a damaged one."""
        ...

    def encode(
        self,
        encoders: Sequence[LoadedTextEncoder],
        captions: Sequence[str],
        text: TextConfig,
        tokens: AddedTokens,
    ) -> Conditioning:
        """Captions to what the denoiser reads, with a mask where padding does not count. Gradients
        flow to the encoders' parameters and to learned tokens.
        """
        ...

    def uncut(
        self,
        encoders: Sequence[LoadedTextEncoder],
        captions: Sequence[str],
        text: TextConfig,
        tokens: AddedTokens,
    ) -> TextConfig:
        """The settings with which none of the captions is cut off, as far as settings decide it."""
        ...

    def scratch(
        self,
        family: Family,
        configs: dict[str, dict[str, Any]],
        *,
        resolution: int | None,
        inpainting: bool,
        vocabulary: "Vocabulary | None",
    ) -> Mapping[str, StoredTokenizer]:
        """The tokenizers of a base of random weights, by their folders; what follows from the
        arguments is written into its configs.

        resolution: native side in pixels; None leaves it.
        inpainting: the denoiser reads a mask too. Raises ModelError where there is no such form.
        vocabulary: for byte-pair tokenizers, in place of the published one.
        """
        ...


__all__ = [
    "NO_TOKENS",
    "AnyTokenizer",
    "Architecture",
    "ConfigRules",
    "Configs",
    "Facts",
    "LoadedTextEncoder",
    "SingleFile",
    "StoredTokenizer",
    "TextTraits",
    "AddedTokens",
]

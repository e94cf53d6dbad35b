"""A base model seen through one small interface. Nothing outside `models/` and `formats/` asks
which family it is.

Shapes: B batch, C latent channels, h w latent grid, H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from konomi.config.sections import TextConfig
from konomi.data.batch import Latents
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.process import Process
from konomi.families.family import Family, Part
from konomi.models.architecture import NO_TOKENS, AddedTokens, LoadedTextEncoder, TextTraits
from konomi.models.attached import AttachedAdapters


class BaseModel(Protocol):
    """A model of some family. Parts are loaded when first used, so a warm cache never loads VAE or
    text encoders.
    """

    name: str
    """Name to show: `tiny`, a file's stem, a hub id."""
    family: str
    """Name of its family."""
    spec: Family
    """What is known of its family."""
    notes: tuple[str, ...]
    """What its files hold and konomi does not use, a line each: for people, before anything is
    done with it."""
    process: Process
    """How latents are noised and what the denoiser is asked for; rescaled already where
    `zero_terminal_snr` is set."""
    zero_terminal_snr: bool
    """A variance-preserving process ends in pure noise: the model's file says so, or
    `use_zero_terminal_snr` was called."""
    resolution: int
    """Native side in pixels."""
    latent_factor: int
    """Pixels per latent cell."""
    size_step: int
    """Sides of pictures are multiples of this many pixels: latent cells, times the patch that the
    denoiser reads."""
    latent_channels: int
    inpainting: bool
    """The denoiser takes 9 channels: noisy latents, mask, masked image."""
    casts_weights: bool
    """The denoiser's layers are konomi's own: they can keep weights smaller than they compute."""
    text_traits: TextTraits
    """What the settings of text, and the syntax of prompts, mean to it."""
    width: int
    """Channels of the denoiser's first level."""
    published_width: int
    """The same of the published models of its family."""
    added_tokens: dict[str, Mapping[str, Tensor]]
    """Learned tokens that captions may use now: token -> {part of the text encoder: vectors [n,
    D]}.
    `attach` puts an adapter's here and takes them away again; a method that trains some puts its
    parameters here."""
    negative_weights: dict[nn.Parameter, Tensor]
    """Weights that are something else in the negative branch of guidance, and what: `attach` puts
    them here and takes them away again, `konomi.adapters.branches` has them used."""

    attached: AttachedAdapters
    """Adapters that belong to it for as long as it is in use."""

    @property
    def guidance_rescale(self) -> float:
        """Share of guidance rescale that sampling should use where nobody says another: 0 for most
        models.
        """
        ...

    @property
    def clip_layer(self) -> int:
        """The text encoder's layer that is read where nothing else is asked for, from the end; 0:
        several differ.
        """
        ...

    def keep_attached(self, attached: AttachedAdapters) -> None:
        """From now on the base is what it was with these adapters on it, for training, drawing,
        fingerprints and saving. Call it before a part is loaded, with adapters that fit
        (`check_fits`).
        """
        ...

    def use_zero_terminal_snr(self) -> None:
        """From now on the noise process ends in pure noise (Lin et al. 2023), for training,
        sampling and saving.

        Raises ModelError where the base predicts epsilon, which says nothing where no signal is
        left, or has another process than a variance-preserving one.
        """
        ...

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def vae(self) -> nn.Module: ...
    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """PART -> module, in the family's order."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype:
        """Of the computation; frozen parts are stored in it."""
        ...

    def place(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        float32_parts: Sequence[Part] = (),
        storage: torch.dtype | None = None,
    ) -> None:
        """Where and in which format parts live, those loaded and those to come. A VAE that
        overflows stays float32.

        Call it before parts are used where `float32_parts` (those whose own weights train) matter:
        what was loaded in half precision has lost its digits. `storage` is the format in which the
        denoiser's linear layers and convolutions keep their weights meanwhile, if it is one that
        `casts_weights` and does not train; nothing else is kept in it.
        """
        ...

    def loaded_parts(self) -> tuple[Part, ...]:
        """Parts whose weights are in memory."""
        ...

    def unload(self, *parts: Part) -> None:
        """Forget parts; they come back from the file when used again. A part that was changed must
        not be unloaded.
        """
        ...

    def fingerprint(self, part: Literal["denoiser", "vae", "text"]) -> str:
        """Hash of the weights and settings that a cache of latents or text states depends on.

        The denoiser's is of a sample of its weights, enough to tell models apart.
        """
        ...

    def encode_images(self, pixels: Tensor) -> Latents:
        """[B, 3, H, W] from -1 to 1 -> scaled latents. Raises ModelError on NaN after trying
        float32.
        """
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] scaled latents -> pixels [B, 3, H, W] from -1 to 1 (not clamped),
        float32.
        """
        ...

    def encode_captions(
        self, captions: Sequence[str], text: TextConfig, *, tokens: AddedTokens = NO_TOKENS
    ) -> Conditioning:
        """Captions -> states (gradients flow if the text encoder's parameters want them, and to
        learned words).

        `tokens` are known beside, and before, those of the base.
        """
        ...

    def loaded_encoders(self) -> tuple[LoadedTextEncoder, ...]:
        """The text encoders as captions are read with them; loads them."""
        ...

    def uncut(
        self, captions: Sequence[str], text: TextConfig, *, tokens: AddedTokens = NO_TOKENS
    ) -> TextConfig:
        """The settings with which none of the captions is cut off; where a text encoder reads no
        more than so many tokens (`text_traits.longest`), as they are.
        """
        ...

    @property
    def has_single_file(self) -> bool:
        """It can be saved as one file, and not only as a diffusers folder."""
        ...

    @property
    def takes_added_tokens(self) -> bool:
        """Its captions may hold learned tokens: there are token embeddings in whose place their
        vectors can be put.
        """
        ...

    def token_embedding(self, part: Part) -> nn.Parameter:
        """The token embeddings of a text encoder [V, D]. Raises ModelError where it takes no
        learned tokens.
        """
        ...

    def token_vectors(self, text: str) -> Mapping[str, Tensor]:
        """Part of the text encoder -> token embeddings of a text, copies, float32 [n, D]: what
        learned words start as.

        Raises RecipeError where the text is no token at all.
        """
        ...

    def tokens(self, text: str) -> Mapping[str, tuple[str, ...]]:
        """Part of the text encoder -> the pieces a text falls into, without start and end. Loads
        no weights.
        """
        ...

    def vocabularies(self) -> Mapping[str, Mapping[str, int]]:
        """Part of the text encoder -> token -> number, as `vocab.json` has them. Loads no
        weights.
        """
        ...

    def with_sizes(self, conditioning: Conditioning, sizes: Tensor) -> Conditioning:
        """Add size micro-conditioning [B, 6] where the family reads it; otherwise unchanged."""
        ...

    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The denoiser's answer [B, C, h, w] in the sense of `process.prediction`; timesteps [B]
        are the process's.
        """
        ...

    def select_layers(self, selector: str) -> dict[str, nn.Module]:
        """Canonical key -> module, for a layer selector.

        `attention` (q k v out of self and cross), `attention.kv`, `attention.k`, `attention.v`,
        `cross_attention`, `cross_attention.kv`,
        `feed_forward`, `projection` (proj_in, proj_out), `transformer` (attention + feed_forward +
        projection), `conv` (3x3 convolutions, 1x1 shortcuts, resnet time projections, up/down
        samplers), `text` (q k v out fc1 fc2). Raises ModelError naming the known words.
        """
        ...

    def block_of(self, key: str) -> str:
        """The block of a denoiser's layer, for weights by block (`IN04`); "" for layers outside
        all blocks.
        """
        ...

    def layer_block(self, key: str) -> str:
        """The block of any layer of denoiser or text encoders, for training by block
        (`konomi.families.blocks`).
        """
        ...

    def module(self, key: str) -> nn.Module:
        """The module of a canonical key. Raises ModelError if this base has none."""
        ...

    def meta_copy(self) -> "BaseModel":
        """The same base with layers that have shapes and no numbers (on the meta device): loads
        nothing, and shows what fits.
        """
        ...

    def state(self, part: Part) -> dict[str, Tensor]:
        """Canonical names (diffusers / classic transformers layout, with `text_model.`) -> tensors
        of a part.
        """
        ...

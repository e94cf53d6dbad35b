"""What a family of models declares about itself. One file per family holds one `Family`;
everything else reads it.

Nothing here knows CLIP, U-Nets or a number of latent channels: a family has parts, and each part
says what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from re import Pattern
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from konomi.errors import ModelError

if TYPE_CHECKING:
    from konomi.diffusion.noise import Prediction

Part: TypeAlias = str
"""Canonical name of a part, the first word of canonical keys: `denoiser`, `vae`, and the families'
text encoders, `text_encoder`, `text_encoder_2`, ... as diffusers calls them."""
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape, as a file's header gives them."""
Selectors: TypeAlias = Mapping[str, Pattern[str]]
"""Neutral name of a kind of layer (`attention`, `attention.kv`, `conv`, `text`) -> paths of such
layers in a part."""

DENOISER: Part = "denoiser"
VAE: Part = "vae"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserSpec:
    """What predicts the noise: U-Net or transformer."""

    part: Part = DENOISER
    folder: str
    """Its folder in a diffusers folder, and its name in model_index.json: `unet`, `transformer`."""
    class_name: str
    """diffusers' class."""
    file_prefix: str = ""
    """What its tensors' names start with in a single file; "" in families that have no such
    form."""
    file_layout: Literal["ldm", "diffusers"] = "diffusers"
    """How the single file names them: as the original code, or as diffusers."""
    selectors: Selectors
    path_words: frozenset[str]
    """The names that its modules' paths are made of, numbers aside: kohya's keys have `_` in place
    of the dots between them, and only these words tell where a dot was."""
    convolutions: Pattern[str]
    """Paths of layers that are convolutions."""
    width: int
    """Channels of its first level in the published model: what learning rates and the like are
    meant for."""
    context_width: int | None = None
    """Width of the text states that `cross_attention.kv` reads in the published model; None if no
    layer reads them."""
    block_order: tuple[str, ...] = ()
    """First words of the paths of its blocks, in the order in which they compute."""
    block_of: Callable[[str, Mapping[str, Any]], str] | None = None
    """(path, config) -> name of the block for weights by block (`IN04`), "" for layers outside all
    blocks."""
    outer_block_of: Callable[[str, Mapping[str, Any]], str] | None = None
    """The same for layers outside all blocks: with which of them they go where weights are merged
    or trained by block."""
    block_lists: tuple[tuple[str, ...], ...] = ()
    """Blocks that a list of weights names, by the list's length (`<lora:x:1:lbw=...>`)."""
    kohya_prefix: str = "lora_unet"
    """Of LoRA keys in kohya's files. `lora_unet` is the word for transformers too."""
    kohya_original_names: bool = False
    """kohya's files call its layers as the original code does, not as diffusers does."""
    reads_sizes: bool = False
    """It reads sizes and pooled text."""
    patch: int = 1
    """Side of the square of latent cells that it reads as one position (transformers: 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderSpec:
    """One text encoder."""

    part: Part
    class_name: str
    """transformers' class."""
    model_type: str
    """transformers' name of the kind, in its config."""
    tokenizer: str
    """Its tokenizer's folder in a diffusers folder."""
    tokenizer_class: str
    """transformers' class."""
    max_length: int
    """Positions of one text, start and end included."""
    pad_token: str = ""
    """What fills a text up to its length; "" where a mask says what counts."""
    width: int
    """Of its token embeddings in the published model."""
    selectors: Selectors
    path_words: frozenset[str]
    """As the denoiser's."""
    inner_layers: Pattern[str]
    """Paths of layers that read states of its width."""
    numbered_layers: Pattern[str] | None = None
    """Beginnings of paths that lie in a numbered layer, the number as first group; None where it
    is one block."""
    token_embedding: str = ""
    """Path of the table in whose place learned tokens put their vectors; "" if it takes none."""
    file_prefix: str = ""
    """What its tensors' names start with in a single file; "" in families that have no such
    form."""
    open_clip: bool = False
    """The single file holds it in OpenCLIP's layout."""
    file_extra_layers: int = 0
    """Layers that the single file has beyond those used."""
    pooled: bool = False
    """Its projected, pooled output conditions the denoiser."""
    layer: int = 1
    """Layer whose states are read where the recipe leaves it open (clip skip), from the end: 1 the
    last."""
    final_norm: bool = True
    """Whether the final layer norm is applied to those states."""
    kohya_prefix: str
    """Of LoRA keys in kohya's files."""
    comfyui_name: str = ""
    """What ComfyUI calls it in the keys of LoRA files; "" if nothing of its own."""
    clip: str = ""
    """Hub id of the CLIP whose text encoder it is, for what a base leaves out of it: the projection
    into the space of pictures, and the image encoder; "" if it is no CLIP's."""
    embedding_name: str = ""
    """What a web UI's embedding file calls the vectors for it; "" where there are none."""

    @property
    def folder(self) -> str:
        """Its folder in a diffusers folder."""
        return self.part

    @property
    def unread_layers(self) -> int:
        """Layers at the end of those diffusers counts that nothing reads."""
        return 0 if self.pooled else self.layer - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSpec:
    """What turns pictures into latents and back."""

    part: Part = VAE
    folder: str = "vae"
    class_name: str
    """diffusers' class."""
    file_prefix: str = ""
    latent_channels: int
    latent_factor: int
    """Pixels per latent cell."""
    latent_scale: float
    """Latents are multiplied by it."""
    float32: bool = False
    """It overflows in half precision."""


PartSpec: TypeAlias = DenoiserSpec | TextEncoderSpec | VaeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A form in which a family is published."""

    prediction: Prediction
    resolution: int
    """Native side in pixels."""
    architecture: str
    """`modelspec.architecture`."""
    base_model_version: str
    """`ss_base_model_version` of kohya's metadata."""
    global_steps: tuple[int, ...] = ()
    """`global_step` in the .ckpt of the published model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """diffusers' pipelines, for model_index.json."""

    class_name: str
    inpaint_class_name: str = ""
    entries: Mapping[str, Any] = field(default_factory=dict)
    """What else the index says."""
    inpaint_entries: Mapping[str, Any] = field(default_factory=dict)
    """And besides for inpainting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of latent diffusion models."""

    name: str
    """In recipes, metadata of caches, `--json`."""
    title: str
    """For messages: `Stable Diffusion 1`."""
    architecture: str
    """Name of what computes its parts, in `konomi.models.architectures`."""
    denoiser: DenoiserSpec
    text_encoders: tuple[TextEncoderSpec, ...]
    vae: VaeSpec
    variants: tuple[Variant, ...]
    """Those published; the first is assumed where a file does not tell."""
    recognise_single_file: Callable[[Shapes], bool]
    """Whether the tensors of a single file are a whole model of this family."""
    recognise_folder: Callable[[Mapping[str, Any], frozenset[str]], bool]
    """The same from the denoiser's config and the names of the folders beside it in a diffusers
    folder."""
    recognise_metadata: Callable[[Mapping[str, str]], bool]
    """Whether an adapter file's metadata names this family. Later families are asked first: their
    files say what earlier ones said too."""
    own_keys: Pattern[str] | None = None
    """Canonical keys that layers of no other family have."""
    ss_v2: bool = False
    """`ss_v2` of kohya's metadata."""
    implementation: str
    """`modelspec.implementation`."""
    has_readers: bool = False
    """`konomi.formats.readers` knows what other programs make of its files."""
    pipeline: Pipeline
    zero_empty_negative: bool = False
    """It was trained with zeros in place of the states of an empty negative prompt."""
    relatives: tuple[tuple[str, str], ...] = ()
    """(pattern of a tensor's name, what the file is) of models that go with it and are no base."""
    memory: tuple[tuple[int, str], ...] = ()
    """(GiB of a card's memory, what of this family trains there), for `konomi doctor`."""
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Folder (and `scheduler`) -> published config, where it is not in
    `configs/NAME/FOLDER.json`."""
    random_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Folder -> settings in which a small base of random weights differs from the published one
    (tests, benchmarks)."""

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """In the order denoiser, text encoders, VAE."""
        return (self.denoiser, *self.text_encoders, self.vae)

    @property
    def adapted_parts(self) -> tuple[DenoiserSpec | TextEncoderSpec, ...]:
        """Those that adapters change: denoiser, text encoders."""
        return (self.denoiser, *self.text_encoders)

    def part(self, name: Part) -> PartSpec:
        """The part of a canonical name. Raises ModelError naming those there are."""
        for spec in self.parts:
            if spec.part == name:
                return spec
        known = ", ".join(spec.part for spec in self.parts)
        raise ModelError(f"{self.title} has no part {name!r}; its parts: {known}.")

    def text_encoder(self, name: str) -> TextEncoderSpec:
        """The text encoder of a part's name or of a tokenizer's. Raises ModelError if there is
        none.
        """
        for spec in self.text_encoders:
            if name in (spec.part, spec.tokenizer):
                return spec
        known = ", ".join(spec.part for spec in self.text_encoders)
        raise ModelError(f"{self.title} has no text encoder {name!r}; it has {known}.")

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """Those published; the first is assumed where a file does not tell."""
        return tuple(variant.prediction for variant in self.variants)

    def variant(self, prediction: str) -> Variant:
        """The published form of a prediction (konomi's word or diffusers'); of one that was never
        published, what predicts the noise.
        """
        wanted = "v" if prediction == "v_prediction" else prediction
        for word in (wanted, "epsilon"):
            for variant in self.variants:
                if variant.prediction == word:
                    return variant
        return self.variants[0]

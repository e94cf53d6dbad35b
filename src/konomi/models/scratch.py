"""Bases with random weights: small ones for tests and benchmarks, and the published architectures at full size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.diffusion.random import stable_hash
from konomi.errors import ModelError
from konomi.models.base import Part
from konomi.models.families import family_named, shipped_config
from konomi.models.family import Family
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.noise_config import prediction_word
from konomi.models.parts import random_part
from konomi.models.source import component
from konomi.models.tokenizer import Vocabulary, clip_vocabulary

Size = Literal["tiny", "full"]

_TINY_VAE = {
    "block_out_channels": [8, 16, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
_TINY: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {
            "block_out_channels": [16, 32, 32],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 2,
            "cross_attention_dim": 32,
            "sample_size": 8,
        },
        "vae": _TINY_VAE,
        "text_encoder": {**_TINY_TEXT, "projection_dim": 32},
    },
    "sdxl": {
        "unet": {
            "block_out_channels": [16, 32, 32],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": [2, 2, 4],
            "transformer_layers_per_block": [1, 1, 2],
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
            "sample_size": 8,
        },
        "vae": _TINY_VAE,
        "text_encoder": {**_TINY_TEXT, "projection_dim": 32},
        "text_encoder_2": {**_TINY_TEXT, "projection_dim": 32},
    },
}
_TINY["sd2"] = {**_TINY["sd1"], "unet": {**_TINY["sd1"]["unet"], "attention_head_dim": [2, 4, 4]}}


@dataclass(frozen=True, slots=True)
class RandomSource:
    """Parts drawn anew, always the same for a seed."""

    family: Family
    prediction: Prediction
    configs: Mapping[str, Mapping[str, Any]]
    seed: int
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    """Tokenizer -> vocabulary, where it is not CLIP's."""
    where: str = "a random base"
    notes: tuple[str, ...] = ()

    def tensors(self, part: Part) -> dict[str, Tensor]:
        seed = stable_hash("scratch", self.seed, part) & (2**63 - 1)
        return random_part(part, self.configs[component(part)], seed=seed)

    def missing_layers(self, part: Part) -> int:
        return 0

    def vocabulary(self, tokenizer: str) -> tuple[Vocabulary, str]:
        tower = next(tower for tower in self.family.towers if tower.tokenizer == tokenizer)
        return self.vocabularies.get(tokenizer) or clip_vocabulary(), tower.pad_token


def random_base(
    family: str,
    *,
    size: Size = "tiny",
    inpainting: bool = False,
    prediction: Prediction | None = None,
    seed: int = 0,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    vocabulary: Vocabulary | None = None,
    name: str = "",
) -> LatentDiffusion:
    """A base of random weights, drawn part by part when first used.

    `tiny` has all kinds of layers of its family in small, and 64-pixel images; `full` is the published architecture.
    `configs` overrides single settings: `{"unet": {"block_out_channels": [...]}, ...}` with the
    components `unet`, `vae`, `text_encoder`, `text_encoder_2` and `scheduler`. `vocabulary` replaces CLIP's; the text
    encoders' `vocab_size` and special tokens follow it. Raises ModelError for an unknown family, size or component.
    """
    spec = family_named(family)
    if size not in ("tiny", "full"):
        raise ModelError(f"there is no size {size!r}; known: tiny, full.")
    components = ["unet", "vae", "scheduler", *(tower.part for tower in spec.towers)]
    unknown = [component for component in configs or {} if component not in components]
    if unknown:
        raise ModelError(f"{spec.title} has no component {unknown[0]!r}; known: {', '.join(components)}.")
    prediction = prediction or spec.predictions[0]
    merged: dict[str, dict[str, Any]] = {}
    for component_name in components:
        merged[component_name] = shipped_config(spec, component_name)
        if size == "tiny":
            merged[component_name].update(_TINY[family].get(component_name, {}))
    if size == "tiny":
        merged["vae"]["down_block_types"] = ["DownEncoderBlock2D"] * 4
    elif component_sizes := spec.resolution[prediction]:
        merged["unet"]["sample_size"] = component_sizes // 8
    merged["unet"]["in_channels"] = 9 if inpainting else 4
    merged["scheduler"]["prediction_type"] = prediction_word(prediction)
    for component_name, changes in (configs or {}).items():
        merged[component_name].update(changes)
    if vocabulary is not None:
        _fit_vocabulary(spec, merged, vocabulary)
    vocabularies: dict[str, Vocabulary] = (
        {} if vocabulary is None else {tower.tokenizer: vocabulary for tower in spec.towers}
    )
    source = RandomSource(spec, prediction, merged, seed, vocabularies)
    return LatentDiffusion(source, name=name or f"random-{family}")


def _fit_vocabulary(spec: Family, configs: dict[str, dict[str, Any]], vocabulary: Vocabulary) -> None:
    from konomi.models.tokenizer import END, START

    for tower in spec.towers:
        configs[tower.part].update(
            vocab_size=max(vocabulary.tokens.values()) + 1,
            bos_token_id=vocabulary.tokens[START],
            eos_token_id=vocabulary.tokens[END],
            pad_token_id=vocabulary.tokens.get(tower.pad_token, vocabulary.tokens[END]),
        )

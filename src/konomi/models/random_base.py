"""Bases with random weights: small ones for tests and benchmarks, and the published architectures
at full size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.diffusion.random import stable_hash
from konomi.errors import ModelError
from konomi.families import family_named, published_config
from konomi.families.family import Family, Part
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.noise_config import prediction_word
from konomi.models.parts import random_part
from konomi.models.tokenizer import Vocabulary, clip_vocabulary

Size = Literal["tiny", "full"]


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
        spec = self.family.part(part)
        return random_part(spec, self.configs[spec.folder], seed=seed)

    def missing_layers(self, part: Part) -> int:
        return 0

    def vocabulary(self, tokenizer: str) -> tuple[Vocabulary, str]:
        pad = self.family.text_encoder(tokenizer).pad_token
        return self.vocabularies.get(tokenizer) or clip_vocabulary(), pad


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

    `tiny` has all kinds of layers of its family in small, and 64-pixel images; `full` is the
    published architecture. `configs` overrides single settings: `{"unet": {"block_out_channels":
    [...]}, ...}` with the components `unet`, `vae`, `text_encoder`, `text_encoder_2` and
    `scheduler`. `vocabulary` replaces CLIP's; the text encoders' `vocab_size` and special tokens
    follow it. Raises ModelError for an unknown family, size or component.
    """
    spec = family_named(family)
    if size not in ("tiny", "full"):
        raise ModelError(f"there is no size {size!r}; known: tiny, full.")
    components = [*(part.folder for part in spec.parts), "scheduler"]
    unknown = [component for component in configs or {} if component not in components]
    if unknown:
        raise ModelError(
            f"{spec.title} has no component {unknown[0]!r}; known: {', '.join(components)}."
        )
    prediction = prediction or spec.predictions[0]
    merged: dict[str, dict[str, Any]] = {}
    for component_name in components:
        merged[component_name] = published_config(spec, component_name)
        if size == "tiny":
            merged[component_name].update(spec.random_configs.get(component_name, {}))
    denoiser, channels = merged[spec.denoiser.folder], spec.vae.latent_channels
    if size == "full":
        denoiser["sample_size"] = spec.variant(prediction).resolution // spec.vae.latent_factor
    denoiser["in_channels"] = 2 * channels + 1 if inpainting else channels
    merged["scheduler"]["prediction_type"] = prediction_word(prediction)
    for component_name, changes in (configs or {}).items():
        merged[component_name].update(changes)
    if vocabulary is not None:
        _fit_vocabulary(spec, merged, vocabulary)
    vocabularies: dict[str, Vocabulary] = (
        {}
        if vocabulary is None
        else {encoder.tokenizer: vocabulary for encoder in spec.text_encoders}
    )
    source = RandomSource(spec, prediction, merged, seed, vocabularies)
    return LatentDiffusion(source, name=name or f"random-{family}")


def _fit_vocabulary(
    spec: Family, configs: dict[str, dict[str, Any]], vocabulary: Vocabulary
) -> None:
    from konomi.models.tokenizer import END, START

    for encoder in spec.text_encoders:
        configs[encoder.part].update(
            vocab_size=max(vocabulary.tokens.values()) + 1,
            bos_token_id=vocabulary.tokens[START],
            eos_token_id=vocabulary.tokens[END],
            pad_token_id=vocabulary.tokens.get(encoder.pad_token, vocabulary.tokens[END]),
        )

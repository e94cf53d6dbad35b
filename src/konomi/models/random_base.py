"""Bases with random weights: small ones for tests and benchmarks, and the published architectures
at full size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.diffusion.random import stable_hash
from konomi.errors import ModelError
from konomi.families import family_named, published_config
from konomi.families.family import Family, Part
from konomi.models.architecture import StoredTokenizer
from konomi.models.architectures import architecture_of
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.noise_config import with_prediction
from konomi.models.parts import random_part
from konomi.models.tokenizer import Vocabulary

Size = Literal["tiny", "full"]


@dataclass(frozen=True, slots=True)
class RandomSource:
    """Parts drawn anew, always the same for a seed."""

    family: Family
    prediction: Prediction
    configs: Mapping[str, Mapping[str, Any]]
    seed: int
    tokenizers: Mapping[str, StoredTokenizer]
    """By their folders."""
    where: str = "a random base"
    notes: tuple[str, ...] = ()

    def tensors(self, part: Part) -> dict[str, Tensor]:
        seed = stable_hash("scratch", self.seed, part) & (2**63 - 1)
        spec = self.family.part(part)
        architecture = architecture_of(self.family)
        return random_part(architecture, spec, self.configs[spec.folder], seed=seed)

    def missing_layers(self, part: Part) -> int:
        return 0

    def tokenizer(self, name: str) -> StoredTokenizer:
        return self.tokenizers[name]


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
    [...]}, ...}` by the folders of the family's parts, and `scheduler`. `vocabulary` replaces
    CLIP's; the text encoders' `vocab_size` and special tokens follow it. Raises ModelError for an
    unknown family, size or component.
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
    tokenizers = architecture_of(spec).scratch(
        spec,
        merged,
        resolution=spec.variant(prediction).resolution if size == "full" else None,
        inpainting=inpainting,
        vocabulary=vocabulary,
    )
    merged["scheduler"] = with_prediction(merged["scheduler"], prediction)
    for component_name, changes in (configs or {}).items():
        merged[component_name].update(changes)
    source = RandomSource(spec, prediction, merged, seed, tokenizers)
    return LatentDiffusion(source, name=name or f"random-{family}")

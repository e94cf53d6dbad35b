"""What other programs call the parts of all families: prefixes and folders, back to our names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from konomi.families import FAMILIES
from konomi.families.family import DENOISER, DenoiserSpec, Part, TextEncoderSpec


def part_of_folder() -> Mapping[str, Part]:
    """Folder of a part that adapters change, as diffusers calls it (`unet`, `text_encoder`) ->
    part.
    """
    return {spec.folder: spec.part for spec in _adapted()}


def folder_of_part(family: str) -> Mapping[Part, str]:
    """The way back in a family; for parts that it lacks, and for a family that is not known, in
    the first that has them.
    """
    specs = sorted(_named(), key=lambda named: named[0] != family)
    return {spec.part: spec.folder for _, spec in reversed(specs)}


def part_of_kohya_prefix() -> Mapping[str, Part]:
    """`lora_unet_` -> `denoiser` and so on."""
    return {f"{spec.kohya_prefix}_": spec.part for spec in _adapted()}


def kohya_prefix(part: Part, family: str) -> str:
    """What kohya's keys of a part begin with in a family; for a family that is not known, in the
    first that has it.
    """
    specs = sorted(_named(), key=lambda named: named[0] != family)
    return next(spec.kohya_prefix for _, spec in specs if spec.part == part)


def part_of_comfyui_name() -> Mapping[str, Part]:
    """`clip_l`, `clip_g` ... -> part."""
    named = (encoder for family in FAMILIES for encoder in family.text_encoders)
    return {encoder.comfyui_name: encoder.part for encoder in named if encoder.comfyui_name}


def part_of_embedding_name() -> Mapping[str, Part]:
    """`emb_params`, `clip_l` ... in an embedding file -> part."""
    named = (encoder for family in FAMILIES for encoder in family.text_encoders)
    return {encoder.embedding_name: encoder.part for encoder in named if encoder.embedding_name}


def embedding_names(parts: Collection[Part]) -> dict[Part, str]:
    """What an embedding file calls the vectors for these text encoders: as the first family that
    has them all.
    """
    for family in FAMILIES:
        names = {e.part: e.embedding_name for e in family.text_encoders if e.embedding_name}
        if set(parts) <= names.keys():
            return {part: names[part] for part in parts}
    return {part: part for part in parts}


def path_words(part: Part) -> frozenset[str]:
    """The names that paths of modules are made of in any family's denoiser, or in any text
    encoder.
    """
    return frozenset(
        word
        for spec in _adapted()
        if (spec.part == DENOISER) == (part == DENOISER)
        for word in spec.path_words
    )


def is_convolution(path: str, family: str) -> bool:
    """Whether a layer of the denoiser is a convolution, by its name; of a family that is not
    known, in all families that have any.
    """
    patterns = [
        spec.convolutions
        for name, spec in _named()
        if isinstance(spec, DenoiserSpec) and name == family
    ]
    denoisers = (known.denoiser for known in FAMILIES)
    patterns = patterns or [spec.convolutions for spec in denoisers if "conv" in spec.selectors]
    return all(pattern.fullmatch(path) for pattern in patterns)


def _named() -> list[tuple[str, DenoiserSpec | TextEncoderSpec]]:
    return [(family.name, spec) for family in FAMILIES for spec in family.adapted_parts]


def _adapted() -> list[DenoiserSpec | TextEncoderSpec]:
    return [spec for _, spec in _named()]

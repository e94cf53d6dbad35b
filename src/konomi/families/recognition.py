"""Which family a file is of, by what it shows of itself: names and shapes, configs, widths of
layers, metadata.

The one recogniser: `models/` asks it before loading a base, `formats/` before reading an adapter,
`inspect` for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from konomi.families import FAMILIES
from konomi.families.family import DENOISER, Family, Part, Shapes

if TYPE_CHECKING:
    from konomi.diffusion.noise import Prediction


def family_of_single_file(shapes: Shapes) -> Family | None:
    """Of a whole model in one file, by the names of its tensors; the widths may be any."""
    return _first(family for family in FAMILIES if family.recognise_single_file(shapes))


def family_of_folder(folders: Set[str], configs: Mapping[str, Mapping[str, Any]]) -> Family | None:
    """Of a diffusers folder.

    folders: the names of the folders in it.
    configs: those of them that hold a denoiser, with its config (see `denoiser_folders`).
    """
    return _first(
        family
        for family in FAMILIES
        if family.denoiser.folder in configs
        and family.recognise_folder(configs[family.denoiser.folder], frozenset(folders))
    )


def denoiser_folders() -> tuple[str, ...]:
    """Where a diffusers folder may have its denoiser: `unet`."""
    return tuple(dict.fromkeys(family.denoiser.folder for family in FAMILIES))


def family_of_context(width: int | None) -> Family | None:
    """Of a denoiser alone, by the width of the text states that it reads."""
    return _first(
        family
        for family in FAMILIES
        if width is not None and family.denoiser.context_width == width
    )


def families_of_contexts(widths: Iterable[int]) -> tuple[Family, ...]:
    """Those whose text states have one of these widths (a hypernetwork has networks for
    several).
    """
    held = set(widths)
    return tuple(family for family in FAMILIES if family.denoiser.context_width in held)


def family_of_layers(widths: Mapping[str, int | None]) -> Family | None:
    """Of an adapter's layers.

    widths: canonical key of a layer -> width of what it reads, None where the update does not tell.

    The width of the text states tells; then layers that one family alone has; then the width of
    text encoders.
    """
    for key, width in widths.items():
        if width is not None and reads_text(key) and (found := family_of_context(width)):
            return found
    for family in FAMILIES:
        if family.own_keys is not None and any(family.own_keys.fullmatch(key) for key in widths):
            return family
    for key, width in widths.items():
        part, _, path = key.partition(".")
        fitting = [
            family
            for family in FAMILIES
            for encoder in family.text_encoders
            if encoder.part == part
            and encoder.width == width
            and encoder.inner_layers.fullmatch(path)
        ]
        if len(fitting) == 1:
            return fitting[0]
    return None


def family_of_metadata(metadata: Mapping[str, str]) -> Family | None:
    """Of what a file says of itself: `ss_base_model_version`, `ss_v2` and
    `modelspec.architecture`.
    """
    # Files of later families say what those of earlier ones say: `ss_v2` is False in all but one.
    return _first(family for family in reversed(FAMILIES) if family.recognise_metadata(metadata))


def family_of_vectors(widths: Mapping[Part, int]) -> Family | None:
    """Of a learned word. widths: part of the text encoder -> width of its vectors."""
    fitting = [family for family in FAMILIES if set(widths) <= _widths(family).keys()]
    if len(fitting) > 1:
        fitting = [family for family in fitting if _widths(family) == widths]
    return fitting[0] if len(fitting) == 1 else None


def family_of_kohya_names(names: Iterable[str]) -> Family | None:
    """Where layers have a prefix that only one family's have, as two text encoders are numbered."""
    owners: dict[str, list[Family]] = {}
    for family in FAMILIES:
        for spec in family.adapted_parts:
            owners.setdefault(f"{spec.kohya_prefix}_", []).append(family)
    own = {prefix: families[0] for prefix, families in owners.items() if len(families) == 1}
    return _first(own[prefix] for name in names for prefix in own if name.startswith(prefix))


def prediction_of_word(word: str) -> Prediction | None:
    """The prediction that a `ss_base_model_version` or `modelspec.architecture` is only used with;
    None if there are several, or the word is none of ours.
    """
    named = {
        variant.prediction
        for family in FAMILIES
        for variant in family.variants
        if word in (variant.architecture, variant.base_model_version)
    }
    return named.pop() if len(named) == 1 else None


def reads_text(key: str) -> bool:
    """Whether a layer of the denoiser reads the text states, by its canonical key."""
    part, _, path = key.partition(".")
    patterns = {family.denoiser.selectors.get("cross_attention.kv") for family in FAMILIES}
    return part == DENOISER and any(
        pattern is not None and pattern.fullmatch(path) for pattern in patterns
    )


def embedding_widths() -> frozenset[int]:
    """Widths that vectors of learned words have in published models."""
    return frozenset(width for family in FAMILIES for width in _widths(family).values())


def _widths(family: Family) -> dict[Part, int]:
    """Of the token embeddings that learned words take the place of, by text encoder."""
    return {e.part: e.width for e in family.text_encoders if e.token_embedding}


def _first(found: Iterable[Family]) -> Family | None:
    return next(iter(found), None)

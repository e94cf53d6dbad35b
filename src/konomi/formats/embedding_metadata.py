"""What files of learned words (Textual Inversion, Gal et al. 2022) have in common: their vectors,
their metadata.

Shapes: n vectors of a word, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.formats.family import family_of
from konomi.formats.kohya_metadata import architecture, base_model_version, ss_v2, with_hashes
from konomi.formats.source import fault

WORD = "konomi.word"
"""Metadata: the word a file was trained as. Web UIs call it by the file's name, whatever that has
become."""
NEGATIVE = "-neg"
"""A word `X-neg` belongs into the negative prompt wherever `X` is used (DreamArtist)."""

_FACTS = {
    "name": "ss_output_name",
    "step": "ss_steps",
    "sd_checkpoint": "ss_sd_model_hash",
    "sd_checkpoint_name": "ss_sd_model_name",
}
"""What a web UI's .pt says of itself, and what the same is called in safetensors metadata."""


def vectors(path: Path, name: str, tensor: Tensor) -> Tensor:
    """[n, D] of a tensor [n, D] or [D]. Raises FileFormatError naming what is no vector."""
    if not tensor.is_floating_point() or tensor.dim() not in (1, 2) or tensor.numel() == 0:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise fault(
            path, name, f"is {kind} {list(tensor.shape)}; vectors of a word are [count, width]"
        )
    return tensor.detach().reshape(-1, tensor.shape[-1])


def with_family(adapter: Adapter) -> Adapter:
    """The adapter with its family filled in."""
    return replace(adapter, family=adapter.family or family_of(adapter))


def trained_token(adapter: Adapter, token: str) -> str:
    """The word that `token` was trained as: the file's own says so in its metadata."""
    word = adapter.metadata.get(WORD, "")
    if not word:
        return token
    if token == adapter.name:
        return word
    return word + NEGATIVE if token == adapter.name + NEGATIVE else token


def file_metadata(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    *,
    title: str,
    word: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """What an adapter says of itself, completed by what other tools sort files by, with the hashes
    of `tensors`.
    """
    metadata = {
        _FACTS.get(name, name): value
        for name, value in adapter.metadata.items()
        if name != "format" and not name.startswith(("ss_network_", "konomi."))
    }
    family = adapter.family or family_of(adapter)
    if family:
        metadata.setdefault("ss_v2", ss_v2(family))
        metadata.setdefault("ss_base_model_version", base_model_version(family, "epsilon"))
        metadata.setdefault("modelspec.sai_model_spec", "1.0.1")
        base = metadata.get("modelspec.architecture", architecture(family, "epsilon", "")).split(
            "/"
        )[0]
        metadata["modelspec.architecture"] = f"{base}/textual-inversion"
        metadata.setdefault("modelspec.title", title)
    metadata.setdefault("ss_output_name", title)
    if word:
        metadata |= {"modelspec.trigger_phrase": word, WORD: word}
    return with_hashes(metadata | dict(extra), tensors)


def pickled_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """The same the other way round: what a .pt tells, of safetensors metadata."""
    return {
        old: metadata[name]
        for old, new in _FACTS.items()
        for name in (old, new)
        if name in metadata
    }

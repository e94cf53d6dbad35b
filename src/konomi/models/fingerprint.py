"""Hashes of a model's parts, by which caches and resumed runs know it again."""

from collections.abc import Iterable

from konomi.families import published_config
from konomi.families.family import Part
from konomi.models.source import PartSource
from konomi.storage.hashing import sampled_hash, tensors_hash, texts_hash


def parts_fingerprint(
    source: PartSource, parts: Iterable[Part], further: Iterable[str], *, sampled: bool
) -> str:
    """Of the weights and settings of some parts, and of what else they depend on.

    sampled: a few values of each tensor tell models apart well enough; no cache depends on them.
    """
    hashed = sampled_hash if sampled else tensors_hash
    hashes, settings = [], []
    for part in parts:
        hashes.append(hashed(source.tensors(part)))
        # Paths, versions and the like in a config change nothing.
        folder = source.family.part(part).folder
        known, config = published_config(source.family, folder), source.configs[folder]
        settings.append(str(sorted((k, v) for k, v in config.items() if k in known)))
    return texts_hash([*hashes, *settings, *further])

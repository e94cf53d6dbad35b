"""Encoders by name: `tiny`, a folder, or a hub id."""

from collections.abc import Sequence
from pathlib import Path

import torch

from konomi.errors import ModelError
from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.encoders.network import open_network
from konomi.evaluation.encoders.remembered import RememberingEncoder
from konomi.evaluation.encoders.sscd import load_sscd
from konomi.models.hub import cached_snapshot, download, is_hub_id
from konomi.storage.home import expanded

_BESIDE_WEIGHTS = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)


def load_encoders(
    image: str, text: str, *, copies: str = "", device: torch.device | None = None
) -> Encoders:
    """What pictures, and pictures and texts, are compared by. Loaded once where both are the same.

    image: `tiny` (the CLIP inside konomi), a folder, or a hub id of DINO, DINOv2, DINOv3, CLIP,
    SigLIP or SigLIP 2.
    text: the same, of a network that reads texts: CLIP, SigLIP or SigLIP 2.
    copies: the authors' TorchScript file of SSCD, or none.
    device: where they compute, by default the CPU.

    Raises ModelError in one line: what is not there, not reachable, damaged or of another kind.
    """
    of_texts = load_encoder(text, device=device)
    if of_texts.network.read is None:
        raise ModelError(
            f"{text}: knows no texts, so it cannot say how well a prompt is followed. Take a CLIP, "
            "SigLIP or SigLIP 2."
        )
    of_pictures = of_texts if image == text else load_encoder(image, device=device)
    of_copies = load_sscd(copies, device=device) if copies else None
    return Encoders(of_pictures, of_texts, of_copies)


def load_encoder(source: str, *, device: torch.device | None = None) -> RememberingEncoder:
    """One of them. Raises ModelError as `load_encoders`."""
    folder = None if source == "tiny" else folder_of(source)
    return RememberingEncoder(source, open_network(source, folder, device or torch.device("cpu")))


def folder_of(source: str) -> Path:
    """Where the files of a folder or hub id are; what is not here is downloaded.

    Raises ModelError: no such folder, no network, no such repository.
    """
    folder = expanded(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not is_hub_id(source):
        raise ModelError(
            f"{source}: no folder of a network to compare pictures by. Give tiny, a folder with "
            "config.json, or a hub id owner/name."
        )
    return cached_snapshot(source, None) or download(
        source, None, choose=wanted_encoder_files, what="network to compare pictures by"
    )


def wanted_encoder_files(names: Sequence[str]) -> list[str]:
    """Of all files of a repository those of an encoder: settings, tokenizer, weights once."""
    if "config.json" not in names:
        return []
    beside = [name for name in _BESIDE_WEIGHTS if name in names]
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if stem in names:
            return [*beside, stem]
        if (index := f"{stem}.index.json") in names:
            root, ending = stem.rsplit(".", 1)
            shards = [n for n in names if n.startswith(f"{root}-") and n.endswith(f".{ending}")]
            return [*beside, index, *shards]
    return []

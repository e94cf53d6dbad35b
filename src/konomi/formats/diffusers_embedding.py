"""Embeddings as diffusers keeps them (`learned_embeds`): a table of words and their vectors, [n, D] or [D]."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from konomi.adapters.adapter import Adapter
from konomi.errors import FileFormatError
from konomi.formats import webui_embedding
from konomi.formats.learned_words import WORD, file_metadata, trained_word, vectors, with_family
from konomi.formats.source import Parsed, Source
from konomi.formats.writer import Writer
from konomi.storage.tensor_file import write_tensors

NAME = "diffusers"
_WIDTHS = (768, 1024, 1280)
_MAX_WORDS, _MAX_VECTORS = 64, 256


def recognise(source: Source) -> bool:
    """Whether the file is a short table of vectors, as wide as a known text encoder's or named `<like this>`."""
    shapes = source.shapes
    if not shapes or len(shapes) > _MAX_WORDS:
        return False
    if not all(len(shape) in (1, 2) and (len(shape) == 1 or shape[0] <= _MAX_VECTORS) for shape in shapes.values()):
        return False
    if WORD in source.metadata or source.metadata.get("modelspec.architecture", "").endswith("/textual-inversion"):
        return True
    if all(re.fullmatch(r"<[^<>]+>", name) for name in shapes):
        return True
    return all(shape[-1] in _WIDTHS for shape in shapes.values())


def parse(source: Source) -> Parsed:
    """Every word of the table. Raises FileFormatError naming the one that has no vectors."""
    embeddings = {
        word: {"text_encoder": vectors(source.path, word, tensor)} for word, tensor in source.tensors().items()
    }
    return Parsed(with_family(Adapter(embeddings=embeddings, metadata=dict(source.metadata), name=source.name)))


def write(adapter: Adapter, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """All words in one safetensors file; for SDXL, whose words have two sets of vectors, as web UIs and diffusers'
    examples have it: one file a word. Raises FileFormatError for another ending and for NaN."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise FileFormatError(f"{path}: diffusers' embeddings are written as .safetensors; name the file so.")
    if any("text_encoder_2" in found for found in adapter.embeddings.values()):
        webui_embedding.write(adapter, path, dtype=dtype)
        return
    tensors = {
        trained_word(adapter, token): found["text_encoder"] if dtype is None else found["text_encoder"].to(dtype)
        for token, found in adapter.embeddings.items()
    }
    only = next(iter(tensors)) if len(tensors) == 1 else ""
    write_tensors(path, tensors, file_metadata(adapter, tensors, title=path.stem, word=only, extra={}))


WRITERS = (Writer("embedding", ("diffusers",), ".safetensors", lambda a, path, o: write(a, path, dtype=o.dtype)),)

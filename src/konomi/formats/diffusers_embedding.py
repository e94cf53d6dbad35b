"""Embeddings as diffusers keeps them (`learned_embeds`): a table of words and their vectors, [n,
D] or [D].
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from konomi.adapters.adapter import Adapter
from konomi.families.recognition import embedding_widths
from konomi.formats import webui_embedding
from konomi.formats.embedding_metadata import (
    WORD,
    file_metadata,
    trained_token,
    vectors,
    with_family,
)
from konomi.formats.source import Parsed, Source, fault
from konomi.formats.writer import Writer
from konomi.storage.tensor_file import write_tensors

NAME = "diffusers"
_MAX_WORDS, _MAX_VECTORS = 64, 256
_WORD_IN_BRACKETS = re.compile(r"<[^<>]+>")
_NO_WORDS = re.compile(
    r"(.*[._:/])?(weights?|bias|gamma|beta|alpha|scale|mean|std|var|norm|proj|kernel|logits|labels?|ids|tensor|data|x|"
    r"(text|image|prompt|pooled|clip|prior|negative|positive)?_?(embeds?|embeddings?|features?|states|vectors?|params?)|"
    r"latents?|centroids?|prototypes?|positional_embedding|class_embedding|up|down|diff|lora_?[AB]|[uv]|\d+)",
    re.IGNORECASE,
)
"""What tensors of anything else are called, though they may be as wide as a word."""


def recognise(source: Source) -> bool:
    """Whether the file is a short table of vectors that are called as words are: `<like this>`, or
    as the file's own metadata says, or by a plain name and as wide as a known text encoder's.
    Width alone says nothing.
    """
    if not source.shapes or len(source.shapes) > _MAX_WORDS:
        return False
    if _says_so(source) or any(_WORD_IN_BRACKETS.fullmatch(name) for name in source.shapes):
        return True
    return len(_words(source)) == len(source.shapes)


def parse(source: Source) -> Parsed:
    """Every word of the table. Raises FileFormatError naming the one that has no vectors."""
    tensors, words = source.tensors(), _words(source)
    if not words:
        raise fault(
            source.path, next(iter(tensors)), "is not the vector of a word, as the file says"
        )
    embeddings = {
        word: {"text_encoder": vectors(source.path, word, tensors[word])} for word in words
    }
    adapter = with_family(
        Adapter(embeddings=embeddings, metadata=dict(source.metadata), name=source.name)
    )
    plain = (
        []
        if _says_so(source)
        else [word for word in words if not _WORD_IN_BRACKETS.fullmatch(word)]
    )
    notes = [
        f"taken for the learned word {word!r} by its name and width; nothing in it says so."
        for word in plain[:1]
    ]
    return Parsed(adapter, notes=tuple(notes), used=frozenset(words))


def _says_so(source: Source) -> bool:
    architecture = source.metadata.get("modelspec.architecture", "")
    return WORD in source.metadata or architecture.endswith("/textual-inversion")


def _words(source: Source) -> list[str]:
    """Names that are words; by a plain name only what has a known width."""
    told = _says_so(source)
    return [
        name
        for name, shape in source.shapes.items()
        if _WORD_IN_BRACKETS.fullmatch(name)
        or (
            _is_vectors(shape)
            and (told or shape[-1] in embedding_widths())
            and (told or _may_be_word(name))
        )
    ]


def _may_be_word(name: str) -> bool:
    return len(name) <= 100 and "." not in name and not _NO_WORDS.fullmatch(name)


def _is_vectors(shape: tuple[int, ...]) -> bool:
    return len(shape) in (1, 2) and (len(shape) == 1 or shape[0] <= _MAX_VECTORS)


def write(adapter: Adapter, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """All words in one safetensors file; for families whose words have two sets of vectors, as web
    UIs and diffusers' examples have it: one file a word. Raises FileFormatError for another ending
    and for NaN.
    """
    path = Path(path)
    if any(set(found) != {"text_encoder"} for found in adapter.embeddings.values()):
        webui_embedding.write(adapter, path, dtype=dtype)
        return
    tensors = {
        trained_token(adapter, token): found["text_encoder"]
        if dtype is None
        else found["text_encoder"].to(dtype)
        for token, found in adapter.embeddings.items()
    }
    only = next(iter(tensors)) if len(tensors) == 1 else ""
    write_tensors(
        path, tensors, file_metadata(adapter, tensors, title=path.stem, word=only, extra={})
    )


WRITERS = (
    Writer(
        "embedding",
        ("diffusers",),
        ".safetensors",
        lambda a, path, o: write(a, path, dtype=o.dtype),
    ),
)

"""Learned words in prompts: which files a prompt calls by their names alone, and what a file's
word is called.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from konomi.adapters.adapter import Adapter
from konomi.errors import FileFormatError
from konomi.formats import diffusers_embedding, webui_embedding
from konomi.formats.adapter_file import format_of
from konomi.formats.embedding_metadata import NEGATIVE, trained_token
from konomi.formats.source import open_source
from konomi.formats.writer import content_of
from konomi.generation.adapter_request import AdapterRequest
from konomi.models.prompt_syntax import extract_tags, find_words

_SUFFIXES = (".safetensors", ".pt", ".bin")
_SUBFOLDER = "embeddings"
_LARGEST = 16 << 20
"""Bytes; 75 vectors for two text encoders in float32 take 0.6 MB. What is larger is not looked
at."""


def embeddings_of_prompt(
    texts: Sequence[str], folders: Sequence[Path], *, known: Collection[str] = ()
) -> tuple[AdapterRequest, ...]:
    """The embedding files whose names occur as words in a prompt and its negative prompt, as web
    UIs find them.

    Looks directly in the folders and in `embeddings` below each; the first folder counts. Files
    that hold something else, or that cannot be read, leave the word plain text. Words in `known`
    stand for something already.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        for place in (folder, folder / _SUBFOLDER):
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if path.suffix in _SUFFIXES:
                    files.setdefault(path.stem, path)
    taken = {word.casefold() for word in known}
    stems = [stem for stem in files if stem.casefold() not in taken]
    spoken = [
        word for text in texts for _, word in find_words(extract_tags(text)[0], stems) if word
    ]
    found = {word: files[word] for word in dict.fromkeys(spoken) if _is_embedding(files[word])}
    # A negative half comes with its file.
    halves = {f"{word}{NEGATIVE}" for word, path in found.items()}
    return tuple(AdapterRequest(path) for word, path in found.items() if word not in halves)


def named_by_file(adapter: Adapter, path: Path) -> Adapter:
    """The one word of an embedding file may be called by the file's name as well, as in web UIs."""
    words = [word for word in adapter.embeddings if not word.endswith(NEGATIVE)]
    return _renamed(adapter, words[0], path.stem) if len(words) == 1 else adapter


def named_as_trained(adapter: Adapter) -> Adapter:
    """A word that its file says was trained under another name may be called by that as well."""
    first = adapter.name
    return (
        _renamed(adapter, first, trained_token(adapter, first))
        if first in adapter.embeddings
        else adapter
    )


def _renamed(adapter: Adapter, word: str, name: str) -> Adapter:
    if content_of(adapter) != "embedding" or name in adapter.embeddings:
        return adapter
    further = {name: adapter.embeddings[word]}
    if (half := f"{word}{NEGATIVE}") in adapter.embeddings:
        further[f"{name}{NEGATIVE}"] = adapter.embeddings[half]
    return replace(adapter, embeddings=adapter.embeddings | further)


def _is_embedding(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return False
        return format_of(open_source(path)) in (webui_embedding, diffusers_embedding)
    except (FileFormatError, OSError):
        return False

"""Embeddings as web UIs keep them: one word a file, called by the file's name.

`.safetensors` with `emb_params` [n, D], or `clip_l` and `clip_g` for two text encoders; `.pt` with
`string_to_param`; a PNG picture that carries the same. DreamArtist's negative half lies beside its
file as `NAME-neg`. Where konomi trained several words at once, the further ones lie beside the
first as `NAME.WORD`, and the first says so in its metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.families.foreign_names import embedding_names, part_of_embedding_name
from konomi.formats.embedding_metadata import (
    NEGATIVE,
    WORD,
    file_metadata,
    pickled_facts,
    trained_token,
    vectors,
    with_family,
)
from konomi.formats.source import Parsed, Source, fault, open_source
from konomi.formats.unused import prefixed
from konomi.formats.writer import Writer, check_ending
from konomi.storage.pickles import write_pickle
from konomi.storage.sniff import FileKind
from konomi.storage.tensor_file import check_finite, is_finite, write_tensors

NAME = "webui"
_PARTS = {
    **part_of_embedding_name(),
    "emp_params": "text_encoder",  # As OneTrainer spells it.
    # As cog's trainer spells those of two text encoders, which trains two tokens at once; their
    # order is kept.
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
_OUTPUT_PARTS = {
    "clip_l_out": "vectors added to what the first text encoder returns, which konomi does not do",
    "clip_g_out": "vectors added to what the second text encoder returns, which konomi does not do",
}
"""As OneTrainer writes output embeddings."""
_OTHER_ENCODERS = {
    "t5": "T5",
    "t5xxl": "T5",
    "t5_out": "T5",
    "qwen": "Qwen",
    "qwen2": "Qwen",
    "gemma": "Gemma",
    "llama": "Llama",
    "text_encoders_2": "T5",
}
"""Names that only embeddings of other families have (SD3, FLUX ...)."""
_SAID = ("string_to_token", "name", "step", "sd_checkpoint", "sd_checkpoint_name")
"""What a web UI's pickle says of the word, its training and its checkpoint."""
_COMPANIONS = "konomi.companions"
_SUFFIXES = (".safetensors", ".pt")
_ANY_TOKEN = 265
"""What web UIs write as the number of `*`: its place in CLIP's vocabulary."""

Vectors = dict[str, Tensor]
"""Part of the text encoder -> [n, D]."""


def recognise(source: Source) -> bool:
    """Whether the tensors have an embedding's names, or the pickle is a web UI's."""
    if isinstance(source.value, dict) and isinstance(source.value.get("string_to_param"), dict):
        return True
    return any(name in _PARTS or name in _OUTPUT_PARTS for name in source.shapes)


def parse(source: Source) -> Parsed:
    """The word, which is the file's name, with its negative half and companions where they lie
    beside it.

    Raises FileFormatError naming the tensor that is no vector, the companion that holds NaN, and
    what is for no text encoder that konomi knows.
    """
    stem = source.path.stem
    ignored = _ignored(source)
    embeddings = {stem: _vectors(source)}
    for path, name in _companions(source):
        companion = open_source(path)
        if not recognise(companion):
            continue
        found = _vectors(companion)
        for part, tensor in found.items():
            if not is_finite(tensor):
                raise fault(
                    path, part, "holds NaN or infinity; the file is broken. Use another save of it"
                )
        embeddings[name or companion.metadata.get(WORD) or path.stem] = found
        ignored |= prefixed(_ignored(companion), f"{path.name}: ")
    adapter = with_family(Adapter(embeddings=embeddings, metadata=_facts(source), name=stem))
    return Parsed(adapter, ignored=ignored, used=_used(source))


def write(adapter: Adapter, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """One file a word: `path` for the first, or for the one named like it; the others beside it.

    A pickle is written where `path` ends in `.pt`, a safetensors file otherwise. Raises
    FileFormatError for another ending and for NaN.
    """
    path = Path(path)
    check_ending(path, _SUFFIXES, "an embedding")
    first = _first(adapter, path.stem)
    names = {token: _beside(first, token) for token in adapter.embeddings}
    listed = [
        name[1:] for name in names.values() if name.startswith(".") and not name.endswith(NEGATIVE)
    ]
    # The first file comes last: it tells of the others.
    for token in sorted(names, key=lambda token: token == first):
        target = path.with_name(f"{path.stem}{names[token]}{path.suffix}")
        extra = (
            {_COMPANIONS: json.dumps(listed, ensure_ascii=False)}
            if token == first and listed
            else {}
        )
        tensors = named_vectors(adapter.embeddings[token], dtype)
        metadata = file_metadata(
            adapter, tensors, title=target.stem, word=trained_token(adapter, token), extra=extra
        )
        if path.suffix.lower() == ".pt":
            _write_pickle(tensors, metadata, target)
        else:
            write_tensors(target, tensors, metadata)


def named_vectors(found: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """`emb_params`, or `clip_l` and `clip_g` where there is a second text encoder."""
    names = embedding_names(found)
    return {
        names[part]: tensor if dtype is None else tensor.to(dtype) for part, tensor in found.items()
    }


def _used(source: Source) -> frozenset[str]:
    read = (*_PARTS, *_SAID) if source.shapes else ("string_to_param", *_SAID)
    return frozenset(name for name in source.names if name.partition(".")[0] in read)


def _ignored(source: Source) -> dict[str, str]:
    return {name: why for name, why in _OUTPUT_PARTS.items() if name in source.shapes}


def _vectors(source: Source) -> Vectors:
    if source.shapes:
        other = next((name for name in source.shapes if name in _OTHER_ENCODERS), None)
        if other is not None:
            kind = _OTHER_ENCODERS[other]
            raise fault(
                source.path,
                other,
                f"is for the text encoder {kind}: a word for a family that konomi lacks",
            )
        tensors = source.tensors()
        found = {}
        for name, tensor in tensors.items():
            if name in _PARTS:
                if _PARTS[name] in found:
                    raise fault(
                        source.path, name, "is a second set of vectors for the same text encoder"
                    )
                found[_PARTS[name]] = vectors(source.path, name, tensor)
        if not found:
            raise fault(
                source.path,
                next(iter(tensors)),
                f"is all there is, and it is not used: {_why(tensors)}",
            )
        counts = {len(tensor) for tensor in found.values()}
        if len(counts) > 1:
            raise fault(
                source.path,
                "clip_g",
                f"has another number of vectors than clip_l: {sorted(counts)}",
            )
        return found
    held = source.value["string_to_param"]
    if len(held) != 1:
        raise FileFormatError(
            f"{source.path}: string_to_param holds {len(held)} words; an embedding has one."
        )
    ((name, tensor),) = held.items()
    if not isinstance(tensor, Tensor):
        raise fault(source.path, f"string_to_param.{name}", "is not a tensor")
    return {"text_encoder": vectors(source.path, f"string_to_param.{name}", tensor)}


def _why(names: Iterable[str]) -> str:
    return next(
        (_OUTPUT_PARTS[name] for name in names if name in _OUTPUT_PARTS),
        "konomi knows no such vectors",
    )


def _facts(source: Source) -> dict[str, str]:
    if source.kind is FileKind.SAFETENSORS:
        return dict(source.metadata)
    names = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
    return {name: str(source.value[name]) for name in names if source.value.get(name) is not None}


def _companions(source: Source) -> list[tuple[Path, str]]:
    """Files beside this one that belong to it, each with its word; "" where the file itself says
    it.
    """
    stem, suffix = source.path.stem, source.path.suffix
    found = []
    try:
        listed = parse_json(source.metadata.get(_COMPANIONS, "[]"))
    except ValueError:
        listed = []
    for name in listed if isinstance(listed, list) else []:
        # A name never leads out of the folder.
        if isinstance(name, str) and re.fullmatch(r"[^/\\\0]{1,100}", name):
            found += [
                (source.path.with_name(f"{stem}.{name}{suffix}"), ""),
                *_negative(source.path, f"{stem}.{name}"),
            ]
    if not stem.endswith(NEGATIVE):
        found += [(path, f"{stem}{NEGATIVE}") for path, _ in _negative(source.path, stem)]
    return [(path, name) for path, name in found if path.is_file()]


def _negative(path: Path, stem: str) -> list[tuple[Path, str]]:
    endings = dict.fromkeys((path.suffix, *_SUFFIXES))
    return [
        (file, "")
        for end in endings
        if (file := path.with_name(f"{stem}{NEGATIVE}{end}")).is_file()
    ][:1]


def _first(adapter: Adapter, stem: str) -> str:
    """The word that `stem` will stand for."""
    wanted = (stem, adapter.metadata.get(WORD), adapter.name)
    named = next((word for word in wanted if word in adapter.embeddings), None)
    return named or next(
        (w for w in adapter.embeddings if not w.endswith(NEGATIVE)), next(iter(adapter.embeddings))
    )


def _beside(first: str, token: str) -> str:
    """What a word's file has after the first one's stem."""
    if token in (first, first + NEGATIVE):
        return token.removeprefix(first)
    plain = re.sub(r"[^\w-]+", "-", token.removesuffix(NEGATIVE)).strip("-") or "word"
    return f".{plain}{NEGATIVE if token.endswith(NEGATIVE) else ''}"


def _write_pickle(tensors: dict[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    check_finite(tensors, str(path))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content: dict[str, Any] = dict(tensors)
    if "emb_params" in tensors:
        facts = pickled_facts(metadata)
        step = facts.get("step", "")
        content = {
            "string_to_token": {"*": _ANY_TOKEN},
            "string_to_param": {"*": tensors["emb_params"]},
            "name": metadata.get(WORD) or path.stem,
            "step": int(step) if step.isdigit() else 0,
            "sd_checkpoint": facts.get("sd_checkpoint"),
            "sd_checkpoint_name": facts.get("sd_checkpoint_name"),
        }
    write_pickle(path, content)


WRITERS = (
    Writer(
        "embedding",
        ("webui",),
        ".safetensors",
        lambda a, path, o: write(a, path, dtype=o.dtype),
        (".pt",),
    ),
)

"""`merge custom`: files of Custom Diffusion that were trained apart, in one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.conversion import whole_layers
from konomi.adapters.kinds import Replacement
from konomi.config.sections import TextConfig
from konomi.data.captions import captions_in, has_trigger
from konomi.data.encodings import decode_text
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.formats.writer import Target, content_of
from konomi.merging.closed_form import merge
from konomi.models.base import BaseModel
from konomi.models.load import load_base
from konomi.models.prompt_syntax import find_words
from konomi.tasks.files import check_new, target_by_name

CAPTIONS = Path(__file__).parents[1] / "builtin" / "captions"
_TOGETHER = 16
"""Captions encoded in one pass."""


@dataclass(frozen=True, slots=True)
class CustomMerge:
    """What `merge_custom` did."""

    path: Path
    words: tuple[str, ...]
    prompts: tuple[str, ...]
    """The texts on which each concept keeps its answers."""
    num_captions: int
    largest_error: float
    """How far the merged weights miss those answers at most, in shares of the largest."""


def merge_custom(
    files: Sequence[str | Path],
    output: str | Path,
    *,
    base: str,
    prompts: Sequence[str] = (),
    captions: str | Path | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> CustomMerge:
    """Merge files of Custom Diffusion in closed form and write the result, in float32.

    files: two or more, trained apart on the same base.
    output: where to write; it must not exist.
    base: the model they were trained on.
    prompts: texts with the words of the files; each concept keeps its answers on its own, from its
        word on. By default "photo of a WORD".
    captions: a text file, one ordinary caption a line, on which the base should change least; by
        default a list that konomi brings.
    to: the format of the result; by default the one that the name of `output` asks for.
    tell: is handed a line on what of the files is not used.

    Raises KonomiError.
    """
    output = Path(output)
    if len(files) < 2:
        raise RecipeError("merge custom needs at least two files.")
    check_new(output)
    adapters = [read_adapter(file) for file in files]
    for adapter in adapters:
        for note in adapter.notes:
            tell(note)
    words = _words(adapters, files)
    loaded = load_base(base, needs_vae=False)
    loaded.added_tokens.update(
        {word: vectors for adapter in adapters for word, vectors in adapter.embeddings.items()}
    )
    texts = {word: _prompts_of(word, prompts) for word in words}
    ordinary = _captions(captions, loaded)
    states = [
        torch.cat([_target_states(loaded, text) for word in a.embeddings for text in texts[word]])
        for a in adapters
    ]
    merged = merge(
        [_layers(loaded, adapter) for adapter in adapters], states, _states(loaded, ordinary)
    )
    result = Adapter(
        layers=dict(merged.layers),
        embeddings={
            word: vectors for adapter in adapters for word, vectors in adapter.embeddings.items()
        },
        metadata={"modelspec.trigger_phrase": " ".join(words)},
        family=loaded.family,
        name=output.stem,
    )
    write_adapter(result, output, to=to or target_by_name(output), dtype=torch.float32)
    told = tuple(text for word in words for text in texts[word])
    return CustomMerge(output, tuple(words), told, len(ordinary), merged.largest_error)


def _words(adapters: Sequence[Adapter], files: Sequence[str | Path]) -> dict[str, str | Path]:
    """Word -> file. Raises RecipeError for a file that is none, has no word, or has one that
    another has.
    """
    found: dict[str, str | Path] = {}
    for adapter, file in zip(adapters, files, strict=True):
        if content_of(adapter) != "custom diffusion" and not _is_compressed(adapter):
            raise RecipeError(
                f"{file}: is not a Custom Diffusion file, so it cannot be merged as one."
            )
        if not adapter.embeddings:
            raise RecipeError(
                f"{file}: has no word of its own, so konomi cannot tell which prompts are about it."
            )
        for word in adapter.embeddings:
            if (
                other := next(
                    (known for known in found if known.casefold() == word.casefold()), None
                )
            ) is not None:
                raise RecipeError(
                    f"{file}: its word {word!r} is also that of {found[other]}. Train one under "
                    "another."
                )
            found[word] = file
    return found


def _is_compressed(adapter: Adapter) -> bool:
    return bool(adapter.layers) and all(
        key.endswith((".attn2.to_k", ".attn2.to_v")) for key in adapter.layers
    )


def _layers(base: BaseModel, adapter: Adapter) -> Mapping[str, Replacement]:
    others = [key for key in adapter.layers if not key.endswith((".attn2.to_k", ".attn2.to_v"))]
    if others:
        raise RecipeError(
            f"{adapter.name}: changes {others[0]}; only keys and values of cross-attention are "
            "merged."
        )
    return whole_layers(base, adapter)


def _prompts_of(word: str, prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in prompts if has_trigger(text, word)) or (f"photo of a {word}",)


def _target_states(base: BaseModel, text: str) -> Tensor:
    """[M, I]: from the word to the end of the text, its first end token included.

    What stands before the word is the same for every concept, and cannot get an answer of each.
    """
    pieces = find_words(text, base.added_tokens)
    if sum(found is not None for _, found in pieces) != 1:
        raise RecipeError(f"--prompt {text!r}: it must contain one word of one file, exactly once.")
    lengths = [_num_tokens(base, piece, found) for piece, found in pieces]
    before = sum(lengths[: next(i for i, (_, found) in enumerate(pieces) if found is not None)])
    positions = base.text_traits.num_positions
    if 2 + sum(lengths) > positions:
        raise RecipeError(f"--prompt {text!r}: is longer than one chunk of {positions} positions.")
    return _encode(base, [text])[0, 1 + before : 2 + sum(lengths)]


def _num_tokens(base: BaseModel, piece: str, word: str | None) -> int:
    if word is None:
        vectors = base.token_vectors(piece) if piece.strip() else {}
    else:
        vectors = base.added_tokens[word]
    return max((len(vectors_nD) for vectors_nD in vectors.values()), default=0)


def _states(base: BaseModel, captions: Sequence[str]) -> Tensor:
    """[R, I]: all positions but the first, which is the same for every caption."""
    parts = [
        _encode(base, captions[start : start + _TOGETHER])[:, 1:].flatten(0, 1)
        for start in range(0, len(captions), _TOGETHER)
    ]
    return torch.cat(parts)


@torch.no_grad()
def _encode(base: BaseModel, captions: Sequence[str]) -> Tensor:
    states: Tensor = base.encode_captions(captions, TextConfig()).states
    return states.double()


def _captions(file: str | Path | None, base: BaseModel) -> tuple[str, ...]:
    """The captions of a file, or konomi's own: `tiny` has a vocabulary of its own."""
    if file is None:
        file = CAPTIONS / ("tiny.txt" if base.name == "tiny" else "ordinary.txt")
    path = Path(file)
    try:
        found = captions_in(decode_text(path.read_bytes(), str(path)))
    except OSError as error:
        raise RecipeError(f"--captions {path}: cannot be read ({error.strerror}).") from error
    if not found:
        raise RecipeError(f"--captions {path}: holds no caption.")
    return found

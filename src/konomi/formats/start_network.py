"""Networks that guess where a word starts, of pictures of what it means: `konomi learn-start`
writes one, `method.initial = "leap"` reads it.

One safetensors file: the network's tensors, and as metadata which base it belongs to, how wide the
embeddings are that it answers with, and what it was worth on subjects that were kept aside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError, KonomiError, shortened
from konomi.formats.source import Source
from konomi.storage.tensor_file import check_finite, read_header, read_tensors, write_tensors

KIND = "network of starts"
KINDS = ("features", "convolutional")
"""Linear in the features of a CLIP, or LEAP's small convolutional network."""
_KEY = "konomi.start_network"
_WIDEST = 65_536
"""Numbers of an answer, of all vectors and text encoders together."""


@dataclass(frozen=True, slots=True)
class StartFacts:
    """What is to be known of a network without its tensors."""

    kind: str
    """One of `KINDS`."""
    base: str
    """Name of the base, to show."""
    fingerprint: str
    """Of the base's text encoders, whose token embeddings it answers with."""
    widths: dict[str, int]
    """Part of the text encoder -> width of its token embeddings."""
    vectors: int = 1
    """Vectors of a word."""
    clip: str = ""
    """Whose image features it reads; empty for the convolutional one."""
    subjects: int = 0
    """Words or folders that it learned from."""
    held_out: int = 0
    """Subjects that it was measured on."""
    similarity: float = 0.0
    """Mean cosine of what it says of those and the truth, both as seen from the mean embedding."""

    @property
    def numbers(self) -> int:
        """Of an answer."""
        return self.vectors * sum(self.widths.values())


@dataclass(frozen=True, slots=True)
class StartNetwork:
    """A network as it lies in its file."""

    facts: StartFacts
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Float32."""


def recognise(source: Source) -> bool:
    """Its metadata say so."""
    return _KEY in source.metadata


def read_facts(path: Path) -> StartFacts:
    """What is known of a network without its tensors. Raises as `read_start_network`."""
    if not path.is_file():
        raise FileFormatError(f"{path}: there is no such file.")
    text = read_header(path).metadata.get(_KEY)
    if text is None:
        raise FileFormatError(
            f"{path}: is no network of starts. konomi learn-start --base BASE makes one."
        )
    return _facts(path, text)


def read_start_network(path: Path | str) -> StartNetwork:
    """Raises FileFormatError: no such file, something else, or a broken one."""
    path = Path(path)
    facts = read_facts(path)
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    check_finite(tensors, str(path))
    return StartNetwork(facts, tensors)


def write_start_network(network: StartNetwork, path: Path | str) -> None:
    """In half precision, which is finer than a start needs to be. Raises FileFormatError for
    another ending and for NaN, RunError for the disk's refusals.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise FileFormatError(f"{path}: a network of starts is written as .safetensors.")
    tensors = {name: tensor.half().contiguous() for name, tensor in network.tensors.items()}
    write_tensors(path, tensors, {_KEY: json.dumps(asdict(network.facts), sort_keys=True)})


def _facts(path: Path, text: str) -> StartFacts:
    broken = f"{path}: its metadata describe no network of starts"
    try:
        found: Any = parse_json(text)
    except KonomiError as error:
        raise FileFormatError(f"{broken} ({shortened(error)}).") from error
    known = {item.name for item in fields(StartFacts)}
    if not isinstance(found, dict) or not set(found) <= known:
        raise FileFormatError(f"{broken}. Make it anew with konomi learn-start.")
    try:
        facts = StartFacts(**found)
    except TypeError as error:
        raise FileFormatError(f"{broken} ({shortened(error)}).") from error
    texts = (facts.kind, facts.base, facts.fingerprint, facts.clip)
    counts = (facts.vectors, facts.subjects, facts.held_out)
    sound = (
        all(isinstance(value, str) for value in texts)
        and all(type(value) is int and value >= 0 for value in counts)
        and isinstance(facts.similarity, float | int)
        and isinstance(facts.widths, dict)
        and all(type(width) is int and width > 0 for width in facts.widths.values())
    )
    if not sound or facts.kind not in KINDS or not 0 < facts.numbers <= _WIDEST:
        raise FileFormatError(f"{broken}. Make it anew with konomi learn-start.")
    return facts

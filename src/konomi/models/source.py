"""Where the parts of a base come from: a folder, a single file, or a random generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.families.family import Family, Part, TextEncoderSpec

Configs: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Folder of a part in the diffusers layout, or `scheduler` -> its config in diffusers' terms."""


class AnyTokenizer(Protocol):
    """What every tokenizer can do, whatever it takes for a token."""

    def ids(self, text: str) -> list[int]:
        """Token numbers of a text of any length, without start and end."""
        ...

    def pieces(self, text: str) -> list[str]:
        """The tokens themselves."""
        ...

    def vocabulary(self) -> dict[str, int]:
        """Token -> number."""
        ...


class StoredTokenizer(Protocol):
    """A tokenizer as the files of a base hold it: data that nothing has been built of yet."""

    def open(self, spec: TextEncoderSpec, config: Mapping[str, Any]) -> AnyTokenizer:
        """The tokenizer, ready for the text encoder of this config. Raises ModelError where it
        lacks what every text needs, or knows tokens that the text encoder does not.
        """
        ...

    def write(self, folder: Path, *, length: int) -> None:
        """Into a new folder, as transformers reads it. length: positions of a text."""
        ...

    def fingerprint(self) -> tuple[str, ...]:
        """What text states depend on besides weights; empty strings for what is as published."""
        ...


class PartSource(Protocol):
    """Configs at once, tensors when asked for."""

    @property
    def family(self) -> Family: ...
    @property
    def prediction(self) -> Prediction: ...
    @property
    def where(self) -> str:
        """For messages: the path or name."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the files hold and konomi does not use, a line each that names the file."""
        ...

    @property
    def configs(self) -> Configs: ...

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """Canonical name -> tensor as stored; the source keeps no reference."""
        ...

    def missing_layers(self, part: Part) -> int:
        """Layers at the end of a text encoder that are made up, because the file lacks them: not
        to be read.
        """
        ...

    def tokenizer(self, name: str) -> StoredTokenizer:
        """The tokenizer of a folder, `tokenizer` or `tokenizer_2`. Raises ModelError for a damaged
        one.
        """
        ...

"""Where the parts of a base come from: a folder, a single file, or a random generator."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.families.family import Family, Part
from konomi.models.tokenizer import Vocabulary


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
    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """Folder of a part in the diffusers layout, or `scheduler` -> config in diffusers'
        terms.
        """
        ...

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """Canonical name -> tensor as stored; the source keeps no reference."""
        ...

    def missing_layers(self, part: Part) -> int:
        """Layers at the end of a text encoder that are made up, because the file lacks them: not
        to be read.
        """
        ...

    def vocabulary(self, tokenizer: str) -> tuple[Vocabulary, str]:
        """Vocabulary and padding token of `tokenizer` or `tokenizer_2`."""
        ...

"""Aesthetic Gradients as asked of `generate`: checked, opened on a base, and what of it does
nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from konomi.config.aesthetic import AestheticConfig
from konomi.config.problems import check_values
from konomi.generation.aesthetic import AestheticGradients
from konomi.generation.aesthetic_request import (
    WeightedFile,
    blend,
    directions,
    parse_weighted,
)
from konomi.generation.request import Request
from konomi.models.base import BaseModel

_DEFAULT = AestheticConfig()


@dataclass(frozen=True, slots=True)
class AestheticWish:
    """What was asked, before a base is loaded."""

    config: AestheticConfig
    files: tuple[WeightedFile, ...]
    directions: dict[int, Tensor]
    """Width -> unit vector, of the files whose weight is not 0."""

    def on(self, base: BaseModel) -> AestheticGradients | None:
        """None where nothing is tuned. Raises ModelError where an embedding is of no CLIP that the
        base has a text encoder of."""
        if not self.directions or not self.config.steps:
            return None
        return AestheticGradients.of(base, self.config, self.directions, blend(self.files))

    def infotext(self) -> dict[str, str]:
        """As A1111's extension writes them; nothing where nothing is tuned."""
        config = self.config
        if not self.directions or not config.steps:
            return {}
        said = {
            "Aesthetic LR": f"{config.rate:g}",
            "Aesthetic weight": f"{blend(self.files):g}",
            "Aesthetic steps": str(config.steps),
            "Aesthetic embedding": ", ".join(
                file.path.stem if file.weight == 1 else f"{file.path.stem}:{file.weight:g}"
                for file in self.files
                if file.weight
            ),
            "Aesthetic slerp": "True" if config.slerp else "",
        }
        if config.text:
            said["Aesthetic text"] = config.text
            said["Aesthetic slerp angle"] = f"{abs(config.text_share):g}"
            said["Aesthetic text negative"] = "True" if config.text_share < 0 else ""
        return said

    def notes(
        self, base: BaseModel, gradients: AestheticGradients | None, requests: Sequence[Request]
    ) -> Iterator[str]:
        """A line on each flag that does nothing, and on which text encoder is tuned where there
        are several."""
        config = self.config
        if not self.files:
            for name in _given(config):
                yield f"{_flag(name)} has no effect without --aesthetic."
            return
        for file in self.files:
            if not file.weight:
                yield f"{file.path.name} is at strength 0: it has no effect."
        if not config.steps:
            yield "--aesthetic-steps 0 tunes nothing: --aesthetic has no effect."
        if gradients is None:
            return
        if config.slerp and gradients.blend == 1:
            yield (
                "--aesthetic-slerp has no effect: the weights of --aesthetic add up to 1 or more, "
                "so the tuned prompt is taken whole."
            )
        if not config.text and config.text_share != _DEFAULT.text_share:
            yield "--aesthetic-text-share has no effect without --aesthetic-text."
        if config.text and not config.text_share:
            yield "--aesthetic-text has no effect: --aesthetic-text-share is 0."
        if config.negative and all(request.guidance == 1 for request in requests):
            yield (
                "--aesthetic-negative has no effect with guidance 1, which switches guidance off."
            )
        if config.clip and all(tower.is_whole for tower, _ in gradients.goals):
            yield "--clip has no effect: the base has all parts of its CLIP's text encoder."
        for tower, _ in gradients.goals if len(base.spec.text_encoders) > 1 else ():
            yield (
                f"--aesthetic tunes {tower.encoder.part} of {base.spec.title}, whose CLIP has "
                f"features that are {tower.width} wide, as the embedding."
            )


def read_wish(config: AestheticConfig | None) -> AestheticWish:
    """None asks for nothing.

    Raises RecipeError for a setting out of bounds or a file that is not there, FileFormatError for
    one that is no aesthetic embedding.
    """
    config = config or _DEFAULT
    check_values({item.name: getattr(config, item.name) for item in fields(config)}, type(config))
    files = tuple(parse_weighted(one) for one in config.files)
    return AestheticWish(config, files, directions([file for file in files if file.weight]))


def _given(config: AestheticConfig) -> list[str]:
    return [
        item.name
        for item in fields(config)
        if getattr(config, item.name) != getattr(_DEFAULT, item.name)
    ]


def _flag(name: str) -> str:
    return "--clip" if name == "clip" else f"--aesthetic-{name.replace('_', '-')}"

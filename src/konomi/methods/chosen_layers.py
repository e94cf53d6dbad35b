"""The layers of a base that a recipe chooses: by name, block or pattern, and what share of the
weights they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from konomi.config.blocks import BlockRates
from konomi.families.blocks import sorted_blocks
from konomi.families.family import DENOISER, Family, Part
from konomi.families.layer_choice import Choices, Layer, read_choices, shown_blocks
from konomi.models.base import BaseModel


@dataclass(frozen=True, slots=True)
class ChosenLayers:
    """What a choice comes to: said before the first step, and in the result's metadata."""

    num_layers: int
    of_layers: int
    blocks: str
    """`OUT03-OUT05`."""
    share: float
    """Of the weights of the denoiser, and of the text encoders where some of theirs are chosen."""

    @property
    def note(self) -> str:
        return (
            f"trains {self.num_layers} of {self.of_layers} layers ({self.blocks}), which hold "
            f"{100 * self.share:.3g} % of the weights of their parts; all others stay frozen."
        )


_outlines: WeakKeyDictionary[BaseModel, tuple[Layer, ...]] = WeakKeyDictionary()
"""Of bases that are still in use: `needs` asks for them, then the method."""


def layers_of(base: BaseModel) -> tuple[Layer, ...]:
    """The modules of denoiser and text encoders that have weights of their own. Loads none of
    them.
    """
    if base not in _outlines:
        outline = base.meta_copy()
        parts = {DENOISER: outline.denoiser, **outline.text_encoders}
        _outlines[base] = tuple(
            layer for part, owner in parts.items() for layer in _layers_of_part(base, part, owner)
        )
    return _outlines[base]


def _layers_of_part(base: BaseModel, part: Part, owner: nn.Module) -> Iterator[Layer]:
    for path, module in owner.named_modules():
        weights = dict(module.named_parameters(recurse=False))
        if weights:
            key = f"{part}.{path}" if path else part
            size = sum(weight.numel() for weight in weights.values())
            names = tuple(f"{key}.{name}" for name in weights)
            adapted = isinstance(module, nn.Linear | nn.Conv2d)
            yield Layer(key, base.layer_block(key), size, names, adapted)


def summary_of(chosen: Sequence[Layer], layers: Sequence[Layer]) -> ChosenLayers:
    """`layers`: all that there are; parts of which nothing is chosen do not count."""
    parts = {_part(layer) for layer in chosen}
    there = [layer for layer in layers if _part(layer) in parts]
    total = sum(layer.num_weights for layer in there)
    weights = sum(layer.num_weights for layer in chosen)
    return ChosenLayers(
        len(chosen), len(there), shown_blocks(chosen), weights / total if total else 0.0
    )


class RateFactors:
    """Factors on the learning rate by layer. Raises RecipeError, ModelError as `read_choices`."""

    def __init__(
        self, config: BlockRates, base: BaseModel, layers: Sequence[Layer], section: str
    ) -> None:
        self._family = base.spec
        self._rows = table_of(config.rate_factors, base, layers, f"{section}.blocks.rate_factors")
        self._decay = config.rate_decay
        denoiser = sorted_blocks(layer.block for layer in layers if not layer.is_text)
        text = sorted_blocks(layer.block for layer in layers if layer.is_text)
        # Of several text encoders each has its own depth.
        runs = [denoiser, *_by_stem(text)]
        self._behind = {
            name: len(run) - 1 - place for run in runs for place, name in enumerate(run)
        }

    def of(self, layer: Layer) -> float:
        """1 where nothing is said."""
        factor = last_fitting(self._rows, self._family, layer, usual=_all)
        behind = self._behind.get(layer.block, 0)
        return (1.0 if factor is None else factor) * self._decay**behind


def table_of(
    table: Mapping[str, float], base: BaseModel, layers: Sequence[Layer], setting: str
) -> list[tuple[Choices, float]]:
    """The rows of a table of choices, read and checked."""
    return [
        (read_choices([key], base.spec, layers, setting=setting, base=base.name), value)
        for key, value in table.items()
    ]


def last_fitting(
    rows: Iterable[tuple[Choices, float]],
    family: Family,
    layer: Layer,
    *,
    usual: Callable[[Layer], bool],
) -> float | None:
    """The value of the last row that is for a layer; None where none is. `usual`: the layers that
    a block alone means.
    """
    found = None
    for choices, value in rows:
        if any(entry.fits(family, layer, usual) for entry in choices.entries):
            found = value
    return found


def _all(layer: Layer) -> bool:
    return True


def _part(layer: Layer) -> str:
    return layer.key.partition(".")[0]


def _by_stem(names: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("TE2_" if name.startswith("TE2_") else "TE", []).append(name)
    return list(groups.values())

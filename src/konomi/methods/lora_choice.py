"""Layers that a recipe chooses for a LoRA by block or pattern: which, at what rank and rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from konomi.config.blocks import LoraBlocks
from konomi.errors import RecipeError
from konomi.families.family import Family
from konomi.families.layer_choice import Choices, Layer, is_plain, read_choices
from konomi.families.selectors import selects
from konomi.methods.chosen_layers import (
    ChosenLayers,
    RateFactors,
    last_fitting,
    layers_of,
    summary_of,
    table_of,
)
from konomi.methods.lora_settings import LoraConfig
from konomi.models.base import BaseModel


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """What a choice comes to."""

    ranks: Mapping[str, tuple[int, float | None]]
    """Canonical key -> rank and alpha (None: as large as the rank)."""
    factors: Mapping[str, float]
    """Canonical key of any layer -> factor on its learning rate; 1 for those that are not there."""
    named_ranks: Mapping[str, int]
    """Canonical key of any layer -> rank that `blocks.ranks` names for it."""
    excluded: frozenset[str]
    """Keys of layers that are not to be trained, whatever a file brings along."""
    summary: ChosenLayers

    @property
    def has_text(self) -> bool:
        return any(not key.startswith("denoiser.") for key in self.ranks)


def choose_layers(config: LoraConfig, base: BaseModel, section: str) -> LoraChoice | None:
    """None where a recipe names nothing but groups of layers, as most do. Loads no weight.

    section: where the recipe has these settings, for messages.

    Raises RecipeError, ModelError for a choice of nothing.
    """
    if is_plain(config.targets, base.spec) and config.blocks == LoraBlocks():
        return None
    layers = [layer for layer in layers_of(base) if layer.adapted]
    choices = read_choices(
        config.targets, base.spec, layers, setting=f"{section}.targets", base=base.name
    )
    where = f"{section}.blocks"
    tables = {
        name: table_of(getattr(config.blocks, name), base, layers, f"{where}.{name}")
        for name in ("ranks", "alphas")
    }
    rates = RateFactors(config.blocks, base, layers, section)
    factors = {layer.key: rates.of(layer) for layer in layers}
    ranks = {}
    for layer in _chosen(config, base.spec, choices, layers):
        rank, alpha = _sizes(config, base.spec, layer, tables)
        if rank and factors[layer.key]:
            ranks[layer.key] = rank, alpha
    if not ranks and not config.start:
        raise RecipeError(
            f"{section}.targets and {section}.blocks leave no layer to train. Choose fewer to "
            "leave out."
        )
    named = {layer.key: _named(tables["ranks"], base.spec, layer) for layer in layers}
    left_out = frozenset(
        layer.key
        for layer in layers
        if choices.excluded(base.spec, layer) or 0 in (factors[layer.key], named[layer.key])
    )
    trained = [layer for layer in layers if layer.key in ranks]
    return LoraChoice(
        ranks,
        factors,
        {key: int(rank) for key, rank in named.items() if rank},
        left_out,
        summary_of(trained, layers_of(base)),
    )


def _chosen(
    config: LoraConfig, family: Family, choices: Choices, layers: Sequence[Layer]
) -> list[Layer]:
    """Those that `targets` mean, and what `conv_rank` and `text_rank` add in the same blocks."""

    def usual(layer: Layer) -> bool:
        convolution = bool(config.conv_rank) and selects(family, "conv", layer.key)
        return convolution or any(
            selects(family, word, layer.key) for word in ("transformer", "text")
        )

    def default(layer: Layer) -> bool:
        return selects(family, "transformer", layer.key)

    found = set(choices.chosen(family, layers, usual=usual, default=default))
    text_is_chosen = any(layer.is_text for layer in found)
    for layer in layers:
        added = (
            bool(config.conv_rank)
            and selects(family, "conv", layer.key)
            and choices.within_blocks(layer)
        ) or (bool(config.text_rank) and not text_is_chosen and selects(family, "text", layer.key))
        if added and not choices.excluded(family, layer):
            found.add(layer)
    return [layer for layer in layers if layer in found]


def _sizes(
    config: LoraConfig,
    family: Family,
    layer: Layer,
    tables: Mapping[str, Sequence[tuple[Choices, float]]],
) -> tuple[int, float | None]:
    """Rank and alpha of a layer. Of a block alone the tables mean its linear layers."""
    rank, alpha = config.rank, config.alpha
    if layer.is_text and config.text_rank:
        rank, alpha = config.text_rank, config.text_alpha
    elif config.conv_rank and selects(family, "conv", layer.key):
        rank, alpha = config.conv_rank, config.conv_alpha
    own_rank = _named(tables["ranks"], family, layer)
    own_alpha = _named(tables["alphas"], family, layer)
    return (
        rank if own_rank is None else int(own_rank),
        alpha if own_alpha is None else own_alpha,
    )


def _named(table: Sequence[tuple[Choices, float]], family: Family, layer: Layer) -> float | None:
    def linear(one: Layer) -> bool:
        return not selects(family, "conv", one.key)

    return last_fitting(table, family, layer, usual=linear)

"""Which layers of a base a LoRA (or another update in its place) trains, and how each of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from konomi.adapters.kinds import LayerSettings
from konomi.errors import RecipeError
from konomi.families.selectors import selects
from konomi.methods.layer_selectors import selected_layers
from konomi.methods.lora_choice import LoraChoice
from konomi.methods.lora_settings import LoraConfig
from konomi.methods.lora_start import Start
from konomi.models.base import BaseModel


def trained_layers(
    config: LoraConfig,
    base: BaseModel,
    start: Mapping[str, LayerSettings],
    dora_axis: Literal["input", "output"],
    *,
    choice: LoraChoice | None,
    section: str,
) -> dict[str, LayerSettings]:
    """Canonical key -> what is trained there.

    `start`: `layers_of_start`; `choice`: `choose_layers`; `section`: where the recipe has these
    settings, for messages. Raises RecipeError where nothing would be trained.
    """
    # What a file was trained on is gone on with, unless the recipe names layers itself.
    usual = config.targets == LoraConfig().targets
    targets = () if start and usual else config.targets
    if choice is not None:
        named = {} if start and usual else choice.ranks
        found = {
            key: settings_of(config, rank, alpha, dora_axis) for key, (rank, alpha) in named.items()
        }
        return found | {key: start[key] for key in start if key not in choice.excluded}
    chosen = [
        *((selector, config.rank, config.alpha) for selector in targets),
        ("conv", config.conv_rank, config.conv_alpha),
        ("text", config.text_rank, config.text_alpha),
    ]
    found = {}
    for selector, rank, alpha in chosen:
        if rank:
            settings = settings_of(config, rank, alpha, dora_axis)
            found |= dict.fromkeys(selected_layers(base, selector), settings)
    found |= start
    if not found:
        raise RecipeError(
            f"{section}.targets is empty and so are conv_rank and text_rank: nothing would be "
            "trained."
        )
    return found


def settings_of(
    config: LoraConfig, rank: int, alpha: float | None, dora_axis: Literal["input", "output"]
) -> LayerSettings:
    """Of a layer of a rank; `alpha` None: as large as the rank."""
    return LayerSettings(
        rank=rank,
        alpha=float(rank) if alpha is None else alpha,
        dropout=config.dropout,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
        rs_lora=config.scaling == "sqrt_rank",
        dora=config.has_dora,
        max_norm=config.max_norm if config.uses("max_norm") else 0.0,
        dora_axis=dora_axis,
        init=config.init if config.uses("init") else "zero",
        own=getattr(config, config.algorithm, None),
    )


def layers_of_start(
    config: LoraConfig, start: Start | None, dora_axis: Literal["input", "output"]
) -> dict[str, LayerSettings]:
    """Canonical key -> how the layers are trained that a file to go on from brings along. Raises
    RecipeError where file and recipe disagree.
    """
    if start is None:
        return {}
    # What was learned goes on from where it is.
    like = replace(settings_of(config, config.rank, config.alpha, dora_axis), init="zero")
    return {key: start.settings(key, like) for key in start.layers}


def rank_named(config: LoraConfig, base: BaseModel, choice: LoraChoice | None, key: str) -> int:
    """The rank that a recipe names for a layer that a file brings along; 0 where it leaves it to
    the file.
    """
    named = 0 if choice is None else choice.named_ranks.get(key, 0)
    if named:
        return named
    if not key.startswith("denoiser."):
        return config.text_rank
    if selects(base.spec, "conv", key):
        return config.conv_rank
    return 0 if config.rank == LoraConfig().rank else config.rank

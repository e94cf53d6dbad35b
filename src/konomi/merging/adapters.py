"""Several adapters as one: exactly, by ranks side by side; then, if asked, in fewer ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths
from konomi.adapters.conversion import HasModule, as_differences
from konomi.adapters.kinds import Difference, LayerUpdate, LowRank
from konomi.adapters.spectrum import Spectrum, spectrum, spectrum_of_product, truncated
from konomi.config.parse import parse_json
from konomi.errors import RecipeError
from konomi.merging.low_rank import RankChoice, added, shared_out

MERGED = "konomi.merged_from"
_TRIGGER, _TAGS = "modelspec.trigger_phrase", "ss_tag_frequency"


@dataclass(frozen=True, slots=True)
class ReducedLayer:
    """What became of a layer's rank."""

    key: str
    rank: int
    error: float
    """|change - what is written| / |change|."""


def sum_adapters(parts: Sequence[tuple[Adapter, Strengths]], name: str) -> Adapter:
    """One adapter that does what all of them do together at their strengths.

    Raises RecipeError for families that differ, for what only means something beside a base's
    weights (DoRA, (IA)^3, whole weights), and for a word that two of them bring.
    """
    families = {adapter.family for adapter, _ in parts if adapter.family}
    if len(families) > 1:
        raise RecipeError(
            f"the adapters are for different families ({', '.join(sorted(families))}), so they "
            "cannot be merged."
        )
    uses: dict[str, list[tuple[LayerUpdate, float, Adapter]]] = {}
    words: dict[str, dict[str, Tensor]] = {}
    for adapter, strengths in parts:
        if adapter.hypernetwork is not None or adapter.negative is not None:
            raise RecipeError(
                f"{adapter.name}: a hypernetwork, or an adapter of two branches, cannot be merged."
            )
        for key, update in adapter.layers.items():
            if strength := strengths.of(key):
                uses.setdefault(key, []).append((update, strength, adapter))
        for word, vectors in adapter.embeddings.items():
            if word in words:
                raise RecipeError(
                    f"{adapter.name}: brings the word {word!r}, which another one brings too."
                )
            if strengths.text:
                words[word] = {part: v * strengths.text for part, v in vectors.items()}
    return Adapter(
        layers={key: _sum(key, layer) for key, layer in uses.items()},
        embeddings=words,
        metadata=_metadata(parts),
        family=next(iter(families), ""),
        name=name,
    )


def _sum(key: str, uses: Sequence[tuple[LayerUpdate, float, Adapter]]) -> LayerUpdate:
    factors = [(update.as_low_rank(), strength) for update, strength, _ in uses]
    thin = [
        (update, strength)
        for update, strength in factors
        if update is not None and update.mid is None and update.magnitude is None
    ]
    if len(thin) == len(uses):
        return added(thin)
    total: Tensor | None = None
    bias: Tensor | None = None
    for update, strength, adapter in uses:
        change = update.difference()
        if change is None or update.whole is not None:
            raise RecipeError(
                f"{adapter.name}: what it does to {key} is only told beside the base. Name the "
                "base: --base BASE."
            )
        scaled = change * strength
        total = scaled if total is None else total + scaled.reshape(total.shape)
        if update.bias is not None:
            own = update.bias.float() * strength
            bias = own if bias is None else bias + own
    return Difference(total, bias)


def weighted_layers(
    adapter: Adapter, factors: Mapping[str, float], base: HasModule | None
) -> dict[str, LayerUpdate]:
    """The layers at a factor each: those at 1 as they are, those at 0 left out.

    base: the model it belongs to, for updates whose change is told beside its weights alone.
    """
    layers = {key: update for key, update in adapter.layers.items() if factors[key] == 1}
    others = {key: u for key, u in adapter.layers.items() if factors[key] not in (0, 1)}
    if others:
        part = replace(adapter, layers=others, embeddings={})
        told, strengths = summable(part, Strengths(layers=factors), base)
        layers |= sum_adapters([(told, strengths)], adapter.name).layers
    return {key: layers[key] for key in adapter.layers if key in layers}


def summable(
    adapter: Adapter, strengths: Strengths, base: HasModule | None
) -> tuple[Adapter, Strengths]:
    """An adapter whose layers tell their change without the base's weights, and the strengths that
    are left to apply. Without a base it stays as it is.
    """
    needing = [key for key, update in adapter.layers.items() if update.difference() is None]
    if base is None or not needing:
        return adapter, strengths
    layers, rest = dict(adapter.layers), dict(strengths.layers)
    for key in needing:
        update, strength = layers[key], strengths.of(key)
        if update.about.at_strength is not None and strength:
            # Half a rotation is not half of its change.
            layers[key] = update.about.at_strength(update, strength)
            rest[key] = rest.get(key, 1.0) / strength
    told = as_differences(base, replace(adapter, layers=layers), needing)
    return told, replace(strengths, layers=rest)


def reduce_ranks(
    adapter: Adapter, choice: RankChoice, dtype: torch.dtype
) -> tuple[dict[str, LayerUpdate], tuple[ReducedLayer, ...]]:
    """The layers of an adapter in fewer ranks, and how much each loses by it. Layers that are no
    matrices (norms, biases alone) stay as they are.
    """
    found: dict[str, tuple[Spectrum, tuple[int, ...]]] = {}
    for key, update in adapter.layers.items():
        thin = update.as_low_rank()
        if thin is not None and thin.mid is None and thin.magnitude is None:
            shape = (thin.up.shape[0], *thin.down.shape[1:])
            found[key] = (spectrum_of_product(thin), shape)
            continue
        change = update.difference()
        if change is None:
            raise RecipeError(
                f"{adapter.name}: what it does to {key} is only told beside the base. Name the "
                "base: --base BASE."
            )
        if change.dim() > 1:
            found[key] = (spectrum(change, choice.rank), tuple(change.shape))
    ranks = _chosen(found, choice, dtype)
    layers: dict[str, LayerUpdate] = {}
    report = []
    for key, update in adapter.layers.items():
        if key not in found:
            layers[key] = update
        elif ranks[key]:
            spread, shape = found[key]
            reduced = truncated(spread, ranks[key], shape, dtype)
            bias = None if update.bias is None else update.bias.to(dtype)
            layers[key] = LowRank(reduced.down, reduced.up, reduced.alpha, bias=bias)
            report.append(ReducedLayer(key, ranks[key], _lost(spread, ranks[key])))
    return layers, tuple(report)


def _chosen(
    found: Mapping[str, tuple[Spectrum, tuple[int, ...]]], choice: RankChoice, dtype: torch.dtype
) -> dict[str, int]:
    if choice.max_bytes is not None:
        offers = [
            (spread.values_R, shape[0] + math.prod(shape[1:])) for spread, shape in found.values()
        ]
        ranks = shared_out(offers, max(choice.max_bytes - 400 * len(found), 0), dtype.itemsize)
        return dict(zip(found, ranks, strict=True))
    result = {}
    for key, (spread, _) in found.items():
        held = len(spread.values_R)
        if choice.energy is not None:
            result[key] = spread.rank_of(choice.energy)
        else:
            result[key] = min(choice.rank or held, held)
    return result


def _lost(spread: Spectrum, rank: int) -> float:
    kept = float(spread.values_R[:rank].square().sum())
    return math.sqrt(max(spread.norm**2 - kept, 0.0)) / spread.norm if spread.norm else 0.0


def _metadata(parts: Sequence[tuple[Adapter, Strengths]]) -> dict[str, str]:
    """The first one's, with the trigger words and tags of all."""
    metadata = {
        name: value
        for name, value in parts[0][0].metadata.items()
        if not name.startswith(("ss_output_name", "modelspec.title", "ss_network_"))
    }
    triggers: dict[str, None] = {}
    tags: dict[str, object] = {}
    for adapter, _ in parts:
        for word in adapter.metadata.get(_TRIGGER, "").split(", "):
            triggers |= {word: None} if word else {}
        if _TAGS in adapter.metadata:
            tags |= _tags(adapter.metadata[_TAGS])
    metadata |= {_TRIGGER: ", ".join(triggers)} if triggers else {}
    metadata |= {_TAGS: json.dumps(tags, ensure_ascii=False)} if tags else {}
    if len(parts) > 1:
        sources = [
            {"name": adapter.name, "unet": s.denoiser, "text": s.text} for adapter, s in parts
        ]
        metadata[MERGED] = json.dumps(sources, ensure_ascii=False)
    return metadata


def _tags(text: str) -> dict[str, object]:
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

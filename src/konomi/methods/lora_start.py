"""An adapter's file to go on from: which layers it has, at which ranks, and what is lost where the
recipe trains another rank or another kind of update.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, check_fits
from konomi.adapters.conversion import weights_of
from konomi.adapters.delta import delta
from konomi.adapters.kinds import LayerSettings, LayerUpdate, tensors_of
from konomi.adapters.kinds.kind import Kind
from konomi.adapters.spectrum import spectrum_of_product, truncated
from konomi.errors import ModelError, RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.formats.trained_for import other_process
from konomi.models.base import BaseModel


@dataclass(frozen=True, slots=True)
class Start:
    """What a file brings along, as it is gone on with."""

    path: str
    layers: Mapping[str, LayerUpdate]
    """Canonical key -> update."""
    widened: Mapping[str, int] = field(default_factory=dict)
    """Keys of layers that get more directions than the file has -> how many they are then."""
    words: tuple[str, ...] = ()
    """Learned words in the file, which are not trained on."""
    section: str = "method"
    """Where the recipe has a LoRA's settings, for messages."""
    trains_bias: bool = False
    notes: tuple[str, ...] = ()
    """What else of the file is not used, and what is not gone on with as it is."""

    @property
    def has_text(self) -> bool:
        return any(not key.startswith("denoiser.") for key in self.layers)

    @property
    def is_dora(self) -> bool:
        return any(update.magnitude is not None for update in self.layers.values())

    def settings(self, key: str, like: LayerSettings) -> LayerSettings:
        """How the file's layer `key` is trained: with its rank, scale and kind, else as `like`.

        Raises RecipeError where the recipe asks for DoRA, and the file is none.
        """
        update = self.layers[key]
        if like.dora and update.magnitude is None:
            raise RecipeError(
                f"{self.section}.dora is on, and {self.path} is no DoRA (no magnitude for {key}). "
                "Switch it off."
            )
        own = update.rank or like.rank
        rank = self.widened.get(key, own)
        root = rank**0.5 if like.rs_lora else 1.0
        alpha = like.alpha if update.alpha is None else update.alpha
        # alpha / rank, or alpha / sqrt(rank), is then the file's own scale.
        return replace(
            like, rank=rank, alpha=alpha / own * rank / root, dora=update.magnitude is not None
        )

    def widened_like(self, key: str, parameters: Mapping[str, Tensor]) -> LayerUpdate:
        """The update with what it has too little of, as a new layer starts with it: what it changes
        stays the same. `parameters`: of the new layer.
        """
        update = self.layers[key]
        if key not in self.widened:
            fields = set(update.__dataclass_fields__) & parameters.keys()
            missing = [name for name in fields if getattr(update, name) is None]
            empty = {name: torch.zeros_like(parameters[name]) for name in missing}
            return replace(update, **empty) if empty and self.trains_bias else update
        low = update.as_low_rank()
        assert low is not None
        own, rank = low.rank, self.widened[key]
        new = parameters["down"].detach()[own:].to("cpu", low.down.dtype)
        zeros = low.up.new_zeros(len(low.up), rank - own, *low.up.shape[2:])
        return replace(
            low,
            down=torch.cat([low.down.reshape(own, *new.shape[1:]), new]),
            up=torch.cat([low.up, zeros], 1),
            alpha=low.alpha / own * rank,
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """What a recipe asks of the layers of a file to go on from."""

    kind: Kind
    """Of the updates that are trained."""
    algorithm: str
    rank_of: Callable[[str], int]
    """Canonical key -> rank that the recipe names for it, 0 where the file's counts."""
    usual_rank: int
    """Of layers whose file has none."""
    trains_bias: bool = False


_read: WeakKeyDictionary[BaseModel, dict[str, Adapter]] = WeakKeyDictionary()
"""What was read for a base that is still in use: `needs` asks for it, then the method."""


def adapter_to_continue(path: str, base: BaseModel) -> Adapter:
    """The adapter in a file that a run goes on from, read once for a base. Raises as
    `read_adapter`.
    """
    known = _read.setdefault(base, {})
    if path not in known:
        known[path] = read_adapter(path, weight_of=weights_of(base))
    return known[path]


def read_start(path: str, section: str, base: BaseModel, wish: Wish) -> Start:
    """What a file holds, as the recipe trains it. Loads nothing of the base, except for a file that
    means nothing without it (PiSSA, OLoRA, (IA)^3, OFT).

    Raises RecipeError where there is nothing that can be trained on, ModelError where it is for
    another base, FileFormatError.
    """
    adapter = adapter_to_continue(path, base)
    if adapter.negative is not None:
        raise RecipeError(
            f"{section}.start: {path} is of two branches of guidance (DreamArtist), not a plain "
            "LoRA."
        )
    if not adapter.layers:
        held = "a hypernetwork" if adapter.hypernetwork is not None else "only learned words"
        raise RecipeError(f"{section}.start: {path} holds {held}, no LoRA.")
    outline = base.meta_copy()
    check_start(
        path,
        section,
        outline,
        replace(adapter, embeddings={}, name=adapter.name or Path(path).stem),
    )
    work = _Conversion(path, section, base, wish)
    for key, update in adapter.layers.items():
        work.take(key, update, outline.module(key))
    if not work.layers:
        raise RecipeError(f"{section}.start: {path} changes no layer that can be trained on.")
    notes = (*adapter.notes, *work.notes(), *trained_for_notes(path, adapter, base))
    return Start(
        path,
        work.layers,
        work.widened,
        words=tuple(adapter.embeddings),
        section=section,
        trains_bias=wish.trains_bias,
        notes=notes,
    )


@dataclass(slots=True)
class _Conversion:
    """A file's layers on their way to what the recipe trains."""

    path: str
    section: str
    base: BaseModel
    wish: Wish
    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    widened: dict[str, int] = field(default_factory=dict)
    truncated: list[tuple[float, float]] = field(default_factory=list)
    """(norm of the change, share of it that is lost) of each layer."""
    converted: list[tuple[float, float]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    left_out: int = 0

    def take(self, key: str, update: LayerUpdate, module: nn.Module) -> None:
        """One layer of the file; `module` may be without numbers."""
        if not isinstance(module, nn.Linear | nn.Conv2d):
            self.left_out += 1
            return
        bias = update.bias
        if bias is not None and not self.wish.trains_bias:
            self.left_out += 1
            update, bias = replace(update, bias=None), None
            if not tensors_of(update):
                return
        nearest = self.wish.kind.about.nearest
        if type(update) is self.wish.kind and not (nearest and "mid" in tensors_of(update)):
            self.layers[key] = self._at_rank(key, update, module)
        elif nearest is not None:
            change = self._change(key, update)
            limit = min(len(change), change[0].numel())
            rank = min(self.wish.rank_of(key) or self.wish.usual_rank, limit)
            found: LayerUpdate = nearest(change, rank)
            norm = float(torch.linalg.vector_norm(change, dtype=torch.float64))
            there = found.difference()
            assert there is not None
            missed = float(torch.linalg.vector_norm(change - there, dtype=torch.float64))
            self.kinds.add(update.about.name)
            self.converted.append((norm, missed / norm if norm else 0.0))
            self.layers[key] = found if bias is None else replace(found, bias=bias)
        else:
            raise RecipeError(
                f"{self.section}.start: {self.path} is of the kind {update.about.name} ({key}), "
                f'and {self.section}.algorithm is "{self.wish.algorithm}". Go on with the file\'s '
                "own algorithm, or with lora, which takes every kind."
            )

    def _at_rank(self, key: str, update: LayerUpdate, module: nn.Module) -> LayerUpdate:
        """An update of the kind that is trained, cut where the recipe names a lower rank."""
        wanted, found = self.wish.rank_of(key), update.as_low_rank()
        if found is None or not wanted or wanted == found.rank:
            return update
        weight = module.weight
        assert isinstance(weight, Tensor)
        if wanted > found.rank:
            self.widened[key] = wanted
            return update
        whole = spectrum_of_product(found)
        kept = float(whole.values_R[:wanted].square().sum())
        lost = sqrt(max(0.0, 1 - kept / whole.norm**2)) if whole.norm else 0.0
        self.truncated.append((whole.norm, lost))
        low = truncated(whole, wanted, weight.shape, torch.float32)
        return replace(low, magnitude=found.magnitude)

    def _change(self, key: str, update: LayerUpdate) -> Tensor:
        """W' - W in float32."""
        change = None if update.magnitude is not None else update.difference()
        if change is None:
            change = delta(update, weights_of(self.base)(key))
        return change.float()

    def notes(self) -> list[str]:
        """What is not gone on with as it is."""
        path, found = self.path, []
        if self.truncated:
            found.append(
                f"{len(self.truncated)} layers of {path} are truncated to the rank of the recipe, "
                f"which loses {_share(self.truncated):.2g} of what they change (relative norm)."
            )
        if self.widened:
            found.append(
                f"{len(self.widened)} layers of {path} get the higher rank of the recipe: what "
                "they change stays the same."
            )
        if self.converted:
            found.append(
                f"{len(self.converted)} layers of {path} ({', '.join(sorted(self.kinds))}) are "
                f'converted to "{self.wish.algorithm}", which loses {_share(self.converted):.2g} '
                "of what they change (relative norm)."
            )
        if self.left_out:
            found.append(
                f"{self.left_out} changes of biases and normalisations in {path} are left out: "
                "they are not trained on."
            )
        return found


def _share(layers: list[tuple[float, float]]) -> float:
    """Of the norm of all changes together."""
    whole = sqrt(sum(norm**2 for norm, _ in layers))
    lost = sqrt(sum((norm * share) ** 2 for norm, share in layers))
    return lost / whole if whole else 0.0


def check_start(path: str, section: str, outline: BaseModel, adapter: Adapter) -> None:
    """Raises ModelError where layers to go on from are not the base's: before images are encoded
    for a day. `outline`: the base without numbers.
    """
    try:
        check_fits(outline, adapter, Strengths())
    except ModelError as error:
        raise ModelError(f"{section}.start: {path}: {error}") from error


def trained_for_notes(path: str, adapter: Adapter, base: BaseModel) -> tuple[str, ...]:
    """A line where the file says that it was trained for another noise process than the base
    has.
    """
    other = other_process(
        adapter.metadata,
        prediction=base.process.prediction,
        zero_terminal_snr=base.zero_terminal_snr,
    )
    return (
        (f"{path} says that it was trained {other}: what it learned does not carry over.",)
        if other
        else ()
    )

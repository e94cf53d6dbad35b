"""A LoRA file to go on from: which layers it has, and that they keep their ranks unless the recipe
says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, check_fits
from konomi.adapters.conversion import weights_of
from konomi.adapters.kinds import LayerSettings, LowRank
from konomi.errors import ModelError, RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.formats.trained_for import other_process
from konomi.models.base import BaseModel


@dataclass(frozen=True, slots=True)
class Start:
    """What a file brings along."""

    path: str
    layers: Mapping[str, LowRank]
    """Canonical key -> update."""
    words: tuple[str, ...] = ()
    """Learned words in the file, which are not trained on."""
    section: str = "method"
    """Where the recipe has a LoRA's settings, for messages."""
    notes: tuple[str, ...] = ()
    """What else of the file is not used."""

    @property
    def has_text(self) -> bool:
        return any(not key.startswith("denoiser.") for key in self.layers)

    @property
    def is_dora(self) -> bool:
        return any(update.magnitude is not None for update in self.layers.values())

    def settings(self, key: str, like: LayerSettings, *, setting: str, given: int) -> LayerSettings:
        """How the file's layer `key` is trained: with the file's rank, scale and kind, else as
        `like`.

        `setting` and `given` are the rank that the recipe names for such layers, 0 for none.
        Raises RecipeError where it is another than the file's.
        """
        update = self.layers[key]
        rank = update.down.shape[0]
        if given and given != rank:
            raise RecipeError(
                f"{self.section}.{setting} is {given}, and {self.path} has rank {rank} in {key}. "
                f"Leave {self.section}.{setting} out to go on with the file's ranks."
            )
        if like.dora and update.magnitude is None:
            raise RecipeError(
                f"{self.section}.dora is on, and {self.path} is no DoRA (no magnitude for {key}). "
                "Switch it off."
            )
        root = rank**0.5 if like.rs_lora else 1.0
        return replace(
            like,
            rank=rank,
            # alpha / rank, or alpha / sqrt(rank), is then the file's own scale.
            alpha=update.alpha / root,
            dora=update.magnitude is not None,
        )


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


def read_start(path: str, section: str, base: BaseModel) -> Start:
    """The LoRA in a file. Loads nothing of the base, except for a file that means nothing without
    it (PiSSA, OLoRA).

    Raises RecipeError where it is none that can be trained on, ModelError where it is for another
    base, FileFormatError.
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
    factored = {key: update.as_low_rank() for key, update in adapter.layers.items()}
    layers = {key: update for key, update in factored.items() if update is not None}
    others = [key for key in factored if key not in layers]
    if others:
        raise RecipeError(
            f"{section}.start: {path} is not a plain LoRA ({others[0]} is of another kind)."
        )
    biased = [key for key, update in adapter.layers.items() if update.bias is not None]
    if biased:
        raise RecipeError(
            f"{section}.start: {path} changes biases ({biased[0]}), which would be lost in "
            "training."
        )
    check_start(
        path, section, base, replace(adapter, embeddings={}, name=adapter.name or Path(path).stem)
    )
    notes = (*adapter.notes, *trained_for_notes(path, adapter, base))
    return Start(path, layers, words=tuple(adapter.embeddings), section=section, notes=notes)


def check_start(path: str, section: str, base: BaseModel, adapter: Adapter) -> None:
    """Raises ModelError where layers to go on from are not the base's: before images are encoded
    for a day.
    """
    try:
        check_fits(base.meta_copy(), adapter, Strengths())
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

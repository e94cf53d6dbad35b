"""A LoRA file to go on from: which layers it has, and that they keep their ranks unless the recipe says otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass

from konomi.adapters.adapter import LowRank
from konomi.adapters.lora import LoraSpec
from konomi.errors import RecipeError
from konomi.formats import read_adapter


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

    def spec(self, key: str, like: LoraSpec, *, setting: str, given: int) -> LoraSpec:
        """How the file's layer `key` is trained: with the file's rank, scale and kind, else as `like`.

        `setting` and `given` are the rank that the recipe names for such layers, 0 for none. Raises RecipeError where
        it is another than the file's.
        """
        update = self.layers[key]
        rank = update.down.shape[0]
        if given and given != rank:
            raise RecipeError(
                f"{self.section}.{setting} is {given}, and {self.path} has rank {rank} in {key}. Leave "
                f"{self.section}.{setting} out to go on with the file's ranks."
            )
        if like.dora and update.magnitude is None:
            raise RecipeError(
                f"{self.section}.dora is on, and {self.path} is no DoRA (no magnitude for {key}). Switch it off."
            )
        root = rank**0.5 if like.rs_lora else 1.0
        return LoraSpec(
            rank=rank,
            # alpha / rank, or alpha / sqrt(rank), is then the file's own scale.
            alpha=update.alpha / root,
            dropout=like.dropout,
            rank_dropout=like.rank_dropout,
            module_dropout=like.module_dropout,
            rs_lora=like.rs_lora,
            dora=update.magnitude is not None,
            dora_axis=like.dora_axis,
        )


def read_start(path: str, section: str) -> Start:
    """The LoRA in a file. Raises RecipeError where it is none that can be trained on, FileFormatError."""
    adapter = read_adapter(path)
    if adapter.negative is not None:
        raise RecipeError(f"{section}.start: {path} is of two branches of guidance (DreamArtist), not a plain LoRA.")
    if not adapter.layers:
        held = "a hypernetwork" if adapter.hypernetwork is not None else "learned words alone"
        raise RecipeError(f"{section}.start: {path} is {held}, no LoRA.")
    others = [key for key, update in adapter.layers.items() if not isinstance(update, LowRank)]
    if others:
        raise RecipeError(f"{section}.start: {path} is no plain LoRA ({others[0]} is of another kind).")
    biased = [key for key, update in adapter.layers.items() if getattr(update, "bias", None) is not None]
    if biased:
        raise RecipeError(f"{section}.start: {path} changes biases ({biased[0]}), which would be lost in training.")
    layers = {key: update for key, update in adapter.layers.items() if isinstance(update, LowRank)}
    return Start(path, layers, words=tuple(adapter.embeddings), section=section, notes=adapter.notes)

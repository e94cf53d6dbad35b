"""Adapters that belong to a base for as long as it is in use: each part has them from the moment it
is loaded, also when it was sent away and comes back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import HasModules, Strengths, fold
from konomi.adapters.kinds import LayerUpdate
from konomi.families.family import DENOISER, Part


@dataclass(frozen=True, slots=True)
class AttachedAdapters:
    """Which adapters at which strengths."""

    adapters: tuple[tuple[Adapter, Strengths], ...] = ()
    names: tuple[str, ...] = ()
    """Of the files, for messages."""
    fingerprint: str = ""
    """Of the files and strengths."""
    parts: frozenset[Part] = field(init=False)
    """Parts that are changed by them."""

    def __post_init__(self) -> None:
        found = {
            key.partition(".")[0]
            for adapter, strengths in self.adapters
            for both in (adapter, adapter.negative)
            for key in ({} if both is None else both.layers)
            if strengths.of(key) != 0.0
        }
        words = {
            part
            for adapter, strengths in self.adapters
            for vectors in adapter.embeddings.values()
            for part in (vectors if strengths.text else ())
        }
        nets = {DENOISER for adapter, _ in self.adapters if adapter.hypernetwork is not None}
        object.__setattr__(self, "parts", frozenset(found | words | nets))

    def fold_into(self, base: HasModules, part: Part) -> None:
        """Change a part that was just loaded. The order of adapters does not matter beyond
        rounding; each weight is rounded once.
        """
        if part in self.parts:
            fold(base, [(_of_part(adapter, part), s) for adapter, s in self.adapters])

    def marks(self, parts: Iterable[Part]) -> list[str]:
        """What the fingerprint of some parts is to hold besides."""
        return [f"adapters={self.fingerprint}"] if self.parts & set(parts) else []


def _of_part(adapter: Adapter, part: Part) -> Adapter:
    """What an adapter does to one part; its words are known to the base as a whole."""
    negative = adapter.negative
    return replace(
        adapter,
        layers=_layers(adapter, part),
        embeddings={},
        hypernetwork=adapter.hypernetwork if part == DENOISER else None,
        negative=None if negative is None else replace(negative, layers=_layers(negative, part)),
    )


def _layers(adapter: Adapter, part: Part) -> dict[str, LayerUpdate]:
    return {k: update for k, update in adapter.layers.items() if k.startswith(f"{part}.")}

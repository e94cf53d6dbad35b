"""Which layers are meant: words for groups of layers (`attention`, `conv`), blocks (`IN04`, `MID`,
`OUT00-OUT05`, `TE*`), patterns of names (`*.attn2.to_k`), those joined by `:` (`OUT*:conv`), and
what is left out again (`!IN00`).

Everything here is about names: what is chosen is known before any weight is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from konomi.errors import ModelError, RecipeError, shortened
from konomi.families.blocks import expand, nearest, sorted_blocks
from konomi.families.family import DENOISER, Family
from konomi.families.selectors import known_selectors, selects

_PATTERN_SIGNS = frozenset("*?[.")


@dataclass(frozen=True, slots=True)
class Layer:
    """A module of a base that could be chosen."""

    key: str
    """Canonical."""
    block: str
    num_weights: int = 0
    names: tuple[str, ...] = ()
    """What else a pattern may be of: its weights' canonical names."""
    adapted: bool = True
    """Linear or convolution: adapters change such layers."""

    @property
    def is_text(self) -> bool:
        return not self.key.startswith(f"{DENOISER}.")


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a list of layers, read."""

    written: str
    excludes: bool = False
    selectors: tuple[str, ...] = ()
    blocks: tuple[frozenset[str], ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def names_layers(self) -> bool:
        """It says which layers, and not only in which blocks."""
        return bool(self.selectors or self.patterns)

    def in_blocks(self, layer: Layer) -> bool:
        return all(layer.block in blocks for blocks in self.blocks)

    def fits(self, family: Family, layer: Layer, usual: Callable[[Layer], bool]) -> bool:
        """`usual`: the layers of a block that are meant where nothing more is said."""
        return (
            self.in_blocks(layer)
            and all(selects(family, name, layer.key) for name in self.selectors)
            and all(_matches(pattern, layer) for pattern in self.patterns)
            and (self.names_layers or self.excludes or usual(layer))
        )


@dataclass(frozen=True, slots=True)
class Choices:
    """A whole list of them: what any entry names, without what those with `!` name."""

    entries: tuple[Choice, ...]

    @property
    def wanted(self) -> tuple[Choice, ...]:
        return tuple(entry for entry in self.entries if not entry.excludes)

    def excluded(self, family: Family, layer: Layer) -> bool:
        """An entry with `!` names it."""
        return any(entry.excludes and entry.fits(family, layer, _any) for entry in self.entries)

    def within_blocks(self, layer: Layer) -> bool:
        """No entry that is of the layer's part keeps it to other blocks."""
        mine = [entry for entry in self.wanted if _of_part(entry, text=layer.is_text)]
        return not mine or any(entry.in_blocks(layer) for entry in mine)

    def chosen(
        self,
        family: Family,
        layers: Iterable[Layer],
        *,
        usual: Callable[[Layer], bool],
        default: Callable[[Layer], bool],
    ) -> tuple[Layer, ...]:
        """The layers that are meant, in their order.

        usual: of the layers of a block, those that are meant where nothing more is said.
        default: those of which something is left out where every entry leaves out.
        """
        wanted = self.wanted
        return tuple(
            layer
            for layer in layers
            if (
                any(entry.fits(family, layer, usual) for entry in wanted)
                if wanted
                else bool(self.entries) and default(layer)
            )
            and not self.excluded(family, layer)
        )


def _any(layer: Layer) -> bool:
    return True


def _of_part(entry: Choice, *, text: bool) -> bool:
    named = [any(name.startswith("TE") for name in blocks) for blocks in entry.blocks]
    return (not text) if not named else all(named) == text


def read_choices(
    written: Iterable[str], family: Family, layers: Sequence[Layer], *, setting: str, base: str = ""
) -> Choices:
    """Entries as a person writes them, checked against the layers that there are.

    setting: where the recipe has them, for messages.
    base: its name, for messages.

    Raises ModelError for a word that names no group of layers, RecipeError for an entry that names
    no layer of the base; both name what is nearest.
    """
    known = sorted_blocks(layer.block for layer in layers if layer.block)
    entries = []
    for one in written:
        entry = _read(one, family, known, setting)
        if not any(entry.fits(family, layer, _any) for layer in layers):
            raise RecipeError(_nothing(entry, family, layers, known, setting, base))
        entries.append(entry)
    return Choices(tuple(entries))


def is_plain(written: Iterable[str], family: Family) -> bool:
    """Every entry is the name of a group of layers, which every base of the family has."""
    return set(written) <= set(known_selectors(family))


def _read(written: str, family: Family, known: Sequence[str], setting: str) -> Choice:
    excludes = written.strip().startswith("!")
    terms = [term.strip() for term in written.strip().removeprefix("!").split(":")]
    if not all(terms):
        raise RecipeError(
            f"{setting}: {shortened(written, 60)!r} is no choice of layers. Write a group "
            "(attention), a block (OUT03, OUT03-OUT05, OUT*), a pattern (*.attn2.to_k), several of "
            "them joined by a colon, or one with ! in front to leave it out."
        )
    selectors: list[str] = []
    blocks: list[frozenset[str]] = []
    patterns: list[str] = []
    for term in terms:
        found = expand(term, known)
        if term in known_selectors(family):
            selectors.append(term)
        elif found:
            blocks.append(frozenset(found))
        elif found is not None:
            close = nearest(term.partition("-")[0], known)
            hint = f" Did you mean {close}?" if close else ""
            raise RecipeError(
                f"{setting}: this base has no block {shortened(term, 40)!r}.{hint} Its blocks: "
                f"{shown_names(known)}."
            )
        elif _PATTERN_SIGNS & set(term):
            patterns.append(term)
        else:
            raise ModelError(
                f"there are no layers called {shortened(term, 60)!r}.{_like(term, family)} Known: "
                f"{', '.join(known_selectors(family))}; blocks: {shown_names(known)}; or a pattern "
                "of names such as *.attn2.to_k."
            )
    return Choice(written, excludes, tuple(selectors), tuple(blocks), tuple(patterns))


def _nothing(
    entry: Choice,
    family: Family,
    layers: Sequence[Layer],
    known: Sequence[str],
    setting: str,
    base: str,
) -> str:
    """Why an entry is of no use."""
    name = base or "this base"
    if not entry.patterns and not entry.blocks and len(entry.selectors) == 1:
        word = entry.selectors[0]
        return f"{name} has no layers that {word!r} selects: leave it out of the recipe."
    nothing = f"{setting}: {shortened(entry.written, 80)!r} matches no layer of {name}."
    if entry.patterns:
        close = _like_pattern(entry.patterns[0], layers)
        return f"{nothing} The name nearest to it is {close}." if close else nothing
    selector_blocks = sorted_blocks(
        layer.block
        for layer in layers
        if layer.block and all(selects(family, one, layer.key) for one in entry.selectors)
    )
    where = shown_names(selector_blocks) or "none of its blocks"
    return f"{nothing} Layers of {':'.join(entry.selectors) or 'these blocks'} are in {where}."


def _like_pattern(pattern: str, layers: Sequence[Layer]) -> str:
    """The end of a layer's name, as long as the pattern is, that is most like it."""
    core = pattern.strip("*").strip(".")
    length = core.count(".") + 1
    tails = {".".join(layer.key.rsplit(".", length)[-length:]): layer.key for layer in layers}
    return next((tails[tail] for tail in get_close_matches(core, tails, 1, 0.5)), "")


def _like(term: str, family: Family) -> str:
    close = get_close_matches(term, known_selectors(family), 1, 0.6)
    return f" Did you mean {close[0]}?" if close else ""


def shown_blocks(layers: Iterable[Layer]) -> str:
    """The blocks of layers, `OUT03-OUT05, OUT08`."""
    return shown_names(sorted_blocks(layer.block for layer in layers if layer.block))


def shown_names(names: Sequence[str]) -> str:
    """Names of blocks in their order, consecutive ones as a range."""
    runs: list[list[str]] = []
    for name in names:
        stem = name.rstrip("0123456789")
        number = name[len(stem) :]
        if runs and number and runs[-1][-1] == f"{stem}{int(number) - 1:02d}":
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _matches(pattern: str, layer: Layer) -> bool:
    return any(fnmatchcase(name, pattern) for name in (layer.key, *layer.names))

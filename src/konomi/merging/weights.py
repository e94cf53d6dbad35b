"""Which weight each tensor gets: one for all, by block of the denoiser, by pattern of its name.

Blocks have supermerger's and kohya's names: BASE (the text encoders), IN00, IN01 ..., M00, OUT00
...; how many there are, the family says. The time embedding goes with IN00, the last layers
(`out.`) with the last OUT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import cos, isfinite, pi

from konomi.errors import RecipeError, shortened
from konomi.families.blocks import BASE, known_blocks, usual_name
from konomi.families.family import Family

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

PRESETS: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("GRAD_V", lambda x: abs(2 * x - 1)),
    ("GRAD_A", lambda x: 1 - abs(2 * x - 1)),
    ("FLAT_25", lambda x: 0.25),
    ("FLAT_50", lambda x: 0.5),
    ("FLAT_75", lambda x: 0.75),
    ("SMOOTHSTEP", lambda x: x * x * (3 - 2 * x)),
    ("REVERSE_SMOOTHSTEP", lambda x: 1 - x * x * (3 - 2 * x)),
    ("COSINE", lambda x: (1 + cos(pi * x)) / 2),
    ("REVERSE_COSINE", lambda x: (1 - cos(pi * x)) / 2),
    ("ALL_A", lambda x: 0.0),
    ("ALL_B", lambda x: 1.0),
)
"""Name -> weight of a block at x, from 0 (IN00) to 1 (the last OUT). BASE has its own weight."""


@dataclass(slots=True)
class Weights:
    """What each tensor's alpha is."""

    alpha: float
    """Where nothing else is said."""
    base: float | None = None
    """Of the text encoders; None for `alpha`."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    rules: Sequence[tuple[str, float]] = ()
    """(pattern of the name in a single file, weight); the last that fits decides."""
    used: set[str] = field(default_factory=set)
    """Blocks and patterns that some tensor had."""

    def of(self, name: str, family: Family) -> float:
        """For the name of a tensor in a single file."""
        found = self.alpha
        block = block_of(name, family)
        if block == BASE and self.base is not None:
            found = self.base
        elif block in self.blocks:
            self.used.add(block)
            found = self.blocks[block]
        for pattern, weight in self.rules:
            if fnmatchcase(name, pattern):
                self.used.add(pattern)
                found = weight
        return found

    def unused(self) -> tuple[str, ...]:
        """A line on each block and rule that no tensor had, once all have been asked for."""
        blocks = [name for name in self.blocks if name not in self.used]
        lines = [
            f"--rule {p}: no tensor has such a name." for p, _ in self.rules if p not in self.used
        ]
        if blocks:
            lines.append(f"--blocks: this model has no layers in {', '.join(blocks)}.")
        return tuple(lines)


def block_of(name: str, family: Family) -> str:
    """The block of a tensor by its name in a single file; "" for the VAE and what is no weight."""
    if name.startswith(tuple(encoder.file_prefix for encoder in family.text_encoders)):
        return BASE
    prefix = family.denoiser.file_prefix
    if not name.startswith(prefix):
        return ""
    kind, _, rest = name[len(prefix) :].partition(".")
    if kind in ("input_blocks", "output_blocks"):
        number = rest.partition(".")[0]
        return f"{'IN' if kind == 'input_blocks' else 'OUT'}{number:0>2}"
    known = known_blocks(family)
    return {"middle_block": "M00", "out": known[-1]}.get(kind, known[1])


def parse_blocks(written: str, family: Family) -> dict[str, float]:
    """A preset's name, `IN00:0,OUT11:1` (those not named keep alpha), or a number for each block,
    with or without BASE in front.

    Raises RecipeError saying what is wrong with it.
    """
    known = known_blocks(family)
    curve = dict(PRESETS).get(written.strip().upper())
    if curve is not None:
        inner = known[1:]
        return {block: curve(i / (len(inner) - 1)) for i, block in enumerate(inner)}
    entries = [entry.strip() for entry in written.split(",") if entry.strip()]
    if entries and all(":" in entry for entry in entries):
        return dict(_named(entry, known) for entry in entries)
    numbers = [_number(entry, "--blocks") for entry in entries]
    for wanted in (known, known[1:]):
        if len(numbers) == len(wanted):
            return dict(zip(wanted, numbers, strict=True))
    raise RecipeError(
        f"--blocks has {len(numbers)} numbers; {family.title} has {len(known)} blocks with BASE "
        f"and {len(known) - 1} without."
    )


def parse_rules(written: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """`*attn2*:0.3` -> (pattern, weight). Raises RecipeError for what has no number."""
    rules = []
    for one in written:
        pattern, separator, weight = one.rpartition(":")
        if not separator or not pattern:
            raise RecipeError(
                f"--rule {shortened(one)}: write PATTERN:WEIGHT, such as *attn2*:0.3."
            )
        rules.append((pattern, _number(weight, "--rule")))
    return tuple(rules)


def _named(entry: str, known: Sequence[str]) -> tuple[str, float]:
    name, _, weight = entry.partition(":")
    block = usual_name(name)
    if block not in known:
        raise RecipeError(
            f"--blocks: there is no block {shortened(name, 20)!r}; this family has "
            f"{', '.join(known)}."
        )
    return block, _number(weight, "--blocks")


def _number(written: str, flag: str) -> float:
    text = written.strip()
    if not _NUMBER.fullmatch(text) or not isfinite(float(text)):
        presets = f"; presets are {', '.join(name for name, _ in PRESETS)}"
        raise RecipeError(
            f"{flag}: {shortened(text, 40)!r} is no number{presets if flag == '--blocks' else ''}."
        )
    return float(text)

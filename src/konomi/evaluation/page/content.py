"""What stands on a page, top to bottom. Plain data: `training_part` and `comparison_part` fill it,
the templates show it. Texts are as they were found; the templates make them harmless.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture inside the page."""

    data: str
    """`data:image/webp;base64,...`"""
    width: int
    """Pixels of what is embedded."""
    height: int
    file: str = ""
    """Address of the whole file, relative to the page; empty where it is not beside the page."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and its value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Command:
    """Something to type, and what for."""

    why: str
    line: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Which file to keep, and why."""

    heading: str
    reason: str
    refused: tuple[Fact, ...] = ()
    """Candidates that broke a constraint, and which."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt and noise, without and with what was learned."""

    prompt: str
    note: str
    before: Shown
    after: Shown


@dataclass(frozen=True, slots=True)
class Column:
    """Of a grid: the base, a step, a candidate."""

    label: str
    note: str = ""
    kept: bool = False
    """Whether it is the suggested one."""


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures of one prompt and one seed, one for each column; None where there is none."""

    label: str
    pictures: tuple[Shown | None, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures of one prompt. The first column is the base's, where `has_base`."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    has_base: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing without words, and the words beside it."""

    title: str
    svg: str
    note: str = ""
    key: tuple[Fact, ...] = ()
    """The colour (a name in the style sheet) and what it stands for."""
    horizontal: str = ""
    vertical: str = ""


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """One measured figure."""

    value: str
    interval: str = ""
    best: bool = False
    note: str = ""
    """The difference to the base, with its interval."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One candidate."""

    number: str
    """Its number in the chart; empty for the base."""
    label: str
    note: str
    cells: tuple[ScoreCell | None, ...]
    kept: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """All candidates and all scores."""

    columns: tuple[Fact, ...]
    """Title of a score, and whether higher is better."""
    rows: tuple[ScoreRow, ...]
    explained: tuple[Fact, ...]
    """Title of a score, and what it is."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what is to be said about it; beside it, what it is like."""

    picture: Shown | None
    name: str
    text: str
    other: Shown | None = None
    other_name: str = ""


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A run in the tree of those that came from one another."""

    depth: int
    label: str
    text: str
    here: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Parts that are empty are left out."""

    title: str
    lead: str
    language: str
    step: int = 0
    """Of the run, when the page was written."""
    advice: Advice | None = None
    commands: tuple[Command, ...] = ()
    pairs: tuple[Pair, ...] = ()
    learned_from: tuple[Shown, ...] = ()
    learned_note: str = ""
    grids: tuple[Grid, ...] = ()
    folded_grids: tuple[Grid, ...] = ()
    """Those that are shown on request."""
    grids_title: str = ""
    grids_note: str = ""
    """Where the pictures are no training's and no comparison's."""
    trade_off: Chart | None = None
    curves: tuple[Chart, ...] = ()
    scores: ScoreTable | None = None
    hurting: tuple[Example, ...] = ()
    copies: tuple[Example, ...] = ()
    changed: tuple[Fact, ...] = ()
    settings: tuple[Fact, ...] = ()
    facts: tuple[Fact, ...] = ()
    tree: tuple[TreeRow, ...] = ()
    notes: tuple[str, ...] = ()

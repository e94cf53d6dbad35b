"""What a tracker is: a record of the run in the form of another program, beside `log.jsonl`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from konomi.config.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What there is to know about a run before its first step."""

    folder: Path
    recipe: Recipe
    step: int
    """Steps already done: 0 for a new run, else where it goes on."""


class Tracker(Protocol):
    """One open record. It lives in a thread of its own, where it may wait; what it raises ends it
    and nothing else.
    """

    name: ClassVar[str]
    """What `run.trackers` calls it; also the folder it writes below the run folder."""
    package: ClassVar[str]
    """The Python package it needs."""
    extra: ClassVar[str]
    """The extra of konomi that brings the package; empty if konomi itself does."""

    note: str
    """A sentence for the user once the record is open; empty if there is nothing to say."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the record, or go on with the one that the run folder holds."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by name."""

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        """The previews of one step, one a prompt, always in the same order."""

    def close(self) -> None:
        """Everything so far is written or sent when this returns."""

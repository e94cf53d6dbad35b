"""The tree of runs that branched off each other: those above a run, by what it remembers, and those
beside and below it, by what lies in the same folders.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from konomi.storage.atomic import explained
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.parentage import Change, read_origins

MOST_BESIDE = 1000
"""Folders that are looked into."""


@dataclass(frozen=True, slots=True)
class RunNode:
    """One run of a tree."""

    name: str
    """Of its folder."""
    path: Path
    there: bool
    """Whether the folder still is."""
    here: bool
    """Whether it is the run that was asked for."""
    last_step: int
    """Of its newest checkpoint; 0 without one."""
    parent: int | None
    """Its place in the tree's `nodes`; None for the first."""
    at: int
    """The last step it has in common with its parent."""
    changed: tuple[Change, ...]
    """What is other than in its parent."""


@dataclass(frozen=True, slots=True)
class RunTree:
    """Parents stand before their branches; branches of one run in the order of their steps."""

    nodes: tuple[RunNode, ...]

    @property
    def branches(self) -> bool:
        """Whether there is more than one run to draw."""
        return len(self.nodes) > 1


@dataclass(frozen=True, slots=True)
class _Link:
    parent: Path | None
    at: int = 0
    changed: tuple[Change, ...] = ()


def tree(run: Path) -> RunTree:
    """The tree that `run` belongs to: its parents, whether they are there or not, and all branches
    of these that lie beside one of them or beside the run. A run without branches is a tree of
    one.
    """
    run = run.resolve()
    links: dict[Path, _Link] = {}
    _add_line(run, links)
    for folder in _beside(list(links)):
        _add_line(folder, links)
    top = run
    while (parent := links[top].parent) is not None:
        top = parent
    nodes: list[RunNode] = []
    _place(top, None, run, links, nodes)
    return RunTree(tuple(nodes))


def _add_line(folder: Path, links: dict[Path, _Link]) -> None:
    """A run with all its parents, as far as they are not known."""
    here = folder
    for origin in read_origins(folder):
        if here in links and links[here].parent is not None:
            return
        parent = (folder / origin.run).resolve()
        if parent == here or _is_above(here, parent, links):
            # A circle, which only a changed file can make.
            break
        links[here] = _Link(parent, origin.step, origin.changed)
        here = parent
    links.setdefault(here, _Link(None))


def _is_above(here: Path, other: Path, links: dict[Path, _Link]) -> bool:
    """Whether `here` is `other` or one of its parents."""
    seen: Path | None = other
    while seen is not None:
        if seen == here:
            return True
        seen = links[seen].parent if seen in links else None
    return False


def _beside(runs: Iterable[Path]) -> list[Path]:
    """Runs with a parent that lie in the folders of these runs."""
    found = []
    for folder in sorted({run.parent for run in runs}):
        if not folder.is_dir():
            continue
        with explained(folder):
            for number, entry in enumerate(sorted(folder.iterdir())):
                if number >= MOST_BESIDE:
                    break
                if (entry / "parent.json").is_file():
                    found.append(entry.resolve())
    return found


def _place(
    run: Path,
    parent: int | None,
    asked: Path,
    links: dict[Path, _Link],
    nodes: list[RunNode],
) -> None:
    waiting: list[tuple[Path, int | None]] = [(run, parent)]
    while waiting:
        run, parent = waiting.pop()
        link = links[run]
        steps = checkpoint_paths(run / "checkpoints")
        nodes.append(
            RunNode(
                name=run.name,
                path=run,
                there=run.is_dir(),
                here=run == asked,
                last_step=int(steps[-1].name.removeprefix("step-")) if steps else 0,
                parent=parent,
                at=link.at,
                changed=link.changed,
            )
        )
        below = sorted(
            (folder for folder, other in links.items() if other.parent == run),
            key=lambda folder: (links[folder].at, folder.name),
        )
        waiting += [(folder, len(nodes) - 1) for folder in reversed(below)]

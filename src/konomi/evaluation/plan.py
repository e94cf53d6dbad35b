"""The plan of a comparison: which runs, how long, by what it may be told from another comparison.

It lies in the comparison's folder as `plan.json`, so that a comparison that was cut off goes on
with the same steps even where they follow from a measured time.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from konomi.config.parse import parse_json
from konomi.config.problems import adapter_of
from konomi.errors import FileFormatError, RunError
from konomi.storage.atomic import write_text
from konomi.storage.regular import read_small

PLAN_FILE = "plan.json"
VERSION = 1
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One candidate to be trained."""

    id: str
    """The name of its recipe and of its run folder."""
    label: str
    """For people: the method, and what a sweep changed."""
    method: str
    changes: dict[str, str]
    """What a sweep set: setting -> value, as written."""
    steps: int = 0
    batch_size: int = 0
    save_every: int = 0
    seconds_per_step: float | None = None
    """Measured; None where it could not be."""
    failure: str = ""
    """Why it cannot be trained: one line. It is then a row of the table and nothing else."""

    @property
    def images(self) -> int:
        """Pictures learned from, counted as often as they are seen."""
        return self.steps * self.batch_size

    @property
    def seconds(self) -> float | None:
        """Of training, by the measured step."""
        return None if self.seconds_per_step is None else self.steps * self.seconds_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All runs of a comparison, in the order they were asked for."""

    budget: str
    base: str
    runs: tuple[PlannedRun, ...]
    threads: int
    """Of each run's process on the CPU. Kept, because another number rounds otherwise."""
    asked: dict[str, Any]
    """What the command came to, by setting: a folder is gone on with only by the same one."""
    notes: tuple[str, ...] = ()
    """What should be known beforehand, a sentence each."""
    version: int = VERSION

    @property
    def trainable(self) -> tuple[PlannedRun, ...]:
        return tuple(run for run in self.runs if not run.failure)

    def seconds(self, jobs: int = 1) -> float | None:
        """Of all training together, so many runs at a time; None where no step was measured."""
        known = [run.seconds for run in self.trainable if run.seconds is not None]
        return sum(known) / max(1, min(jobs, len(known))) if known else None


def write_plan(plan: Plan, folder: Path) -> None:
    """Put the plan into its folder. Raises RunError for the disk."""
    write_text(folder / PLAN_FILE, json.dumps(asdict(plan), ensure_ascii=False, indent=1) + "\n")


def read_plan(folder: Path) -> Plan | None:
    """The plan that lies in a folder; None where there is none. Raises RunError for one that cannot
    be read."""
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    try:
        data = parse_json(read_small(path, _MOST_BYTES, "plan of a comparison"))
        plan: Plan = adapter_of(Plan).validate_python(data)
    except (FileFormatError, ValidationError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read as the plan of a comparison. Choose another --output, or "
            "remove the folder."
        ) from error
    if plan.version > VERSION:
        raise RunError(f"{path}: was written by a newer konomi. Update konomi to go on with it.")
    return plan


def check_same(plan: Plan, asked: Mapping[str, Any], folder: Path) -> None:
    """Raises RunError that names what differs, where a folder holds another comparison."""
    # Through JSON, as the plan has been: tuples are lists there.
    now = parse_json(json.dumps(asked))
    names = [name for name in {**plan.asked, **now} if plan.asked.get(name) != now.get(name)]
    if names:
        shown = "; ".join(
            f"{name} was {_shown(plan.asked, name)}, is {_shown(now, name)}" for name in names[:3]
        )
        more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
        raise RunError(
            f"{folder}: holds another comparison ({shown}{more}). Repeat that command to go on "
            "with it, or choose another --output."
        )


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "not set"

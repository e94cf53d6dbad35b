"""Answers written down as soon as they are known, and tables made of them."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the pack was asked for."""

    name: str
    device: str
    output: Path
    seconds: float
    """Time it has."""
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def small(self) -> bool:
        """On a CPU small models stand in for those of full size."""
        return self.device == "cpu"

    def write(self, **facts: Any) -> None:
        """Add a row, and say it."""
        print(self.name, *(f"{name}={_shown(value)}" for name, value in facts.items()), flush=True)
        with (self.output / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.name} | facts) + "\n")


def asked(name: str) -> Part:
    """The part as its command line says it."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.gpu.{name}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--output", type=Path, required=True)
    options, _ = parser.parse_known_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return Part(name, options.device, options.output, options.seconds)


def tables(path: Path) -> str:
    """Markdown: a table for each part and each set of columns."""
    if not path.exists():
        return ""
    grouped: dict[tuple[str, tuple[str, ...]], list[Mapping[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        part = row.pop("part")
        grouped.setdefault((part, tuple(row)), []).append(row)
    return "\n".join(
        "\n".join(_table(part, names, rows)) for (part, names), rows in grouped.items()
    )


def _table(part: str, names: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    yield from (f"### {part}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names))
    yield from ("| " + " | ".join(_shown(row[name]) for name in names) + " |" for row in rows)
    yield ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fail(part: Part, reason: str) -> None:
    """Write why a part has no answer, and end it."""
    part.write(failed=reason)
    sys.exit(1)

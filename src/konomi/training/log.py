"""The run's diary: `log.jsonl`, one object a step, and TensorBoard events beside it."""

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from konomi.storage.atomic import explained, write_text
from konomi.training.events import Event, Step, Validated

NAME = "log.jsonl"


def cut_log(run: Path, step: int) -> None:
    """Drop entries after `step`: a resumed run does those steps again. Lines a crash cut short go too."""
    path = run / NAME
    if not path.exists():
        return
    kept = []
    with explained(path):
        lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("step", 0) <= step:
            kept.append(line.decode("utf-8"))
    write_text(path, "".join(line + "\n" for line in kept))


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries so far."""
    return [json.loads(line) for line in (run / NAME).read_text(encoding="utf-8").splitlines()]


def logged(events: Generator[Event, None, None] | Iterator[Event], run: Path) -> Iterator[Event]:
    """The same events, written down on their way."""
    with explained(run), Diary(run) as diary:
        if isinstance(events, Generator):
            with closing(events):
                for event in events:
                    diary.write(event)
                    yield event
        else:
            for event in events:
                diary.write(event)
                yield event


class Diary:
    """An open log; lines reach the file at once, so that a kill loses none."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.file: TextIO | None = None
        self.board: Any = None

    def __enter__(self) -> "Diary":
        self.file = (self.run / NAME).open("a", encoding="utf-8", buffering=1)
        return self

    def write(self, event: Event) -> None:
        if isinstance(event, Step):
            self._line(asdict(event))
            self._scalars(event.step, {"loss": event.loss, "learning_rate": event.learning_rate, **event.parts})
        elif isinstance(event, Validated):
            self._line({"kind": "validation", **asdict(event)})
            self._scalars(event.step, {"validation/loss": event.loss, "validation/base": event.base_loss})

    def _line(self, entry: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps({key: value for key, value in entry.items() if value != {}}) + "\n")

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self.board is None:
            # Imported at the first step, not before it: the import would delay the start.
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(self.run / "tensorboard"), flush_secs=30)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()

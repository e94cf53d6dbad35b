"""The log of a run: `log.jsonl`, one object a step, and the trackers beside it."""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError, RunError
from konomi.storage.atomic import explained, write_file
from konomi.storage.regular import check_regular
from konomi.training.events import Event, Finished, Previewed, Step, Validated, Warned
from konomi.training.trackers.tracker import Tracker
from konomi.training.tracking import Tracking

NAME = "log.jsonl"


def cut_log(run: Path, step: int) -> None:
    """Drop entries after `step`: a resumed run does those steps again. Lines a crash cut short go
    too.
    """
    copy_log(run, run, step)


def copy_log(run: Path, to: Path, step: int) -> None:
    """Write the entries of `run` up to `step` as the log of `to`, where there are any. Raises
    RunError for the disk, or for a log that is no file.
    """
    path = run / NAME
    if not path.exists() and not path.is_symlink():
        return
    try:
        check_regular(path, "log of a run")
    except FileFormatError as strange:
        raise RunError(f"{strange} Remove it.") from strange
    # Written line by line: a long run's log is not held in memory.
    with (
        explained(to / NAME),
        write_file(to / NAME) as temporary,
        temporary.open("wb") as kept,
        path.open("rb") as lines,
    ):
        for line in lines:
            entry = _entry(line)
            if entry is not None and entry["step"] <= step:
                kept.write(line.rstrip(b"\r\n") + b"\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries so far; lines that are none are left out."""
    with (run / NAME).open("rb") as lines:
        return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line's entry, with a whole number as its `step` (0 where it names none); None if it is no
    entry.
    """
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or type(entry.setdefault("step", 0)) is not int:
        return None
    return entry


def logged(
    events: Generator[Event, None, None] | Iterator[Event],
    run: Path,
    trackers: Sequence[Tracking] = (),
) -> Iterator[Event]:
    """The same events, written down on their way, and what the trackers have to say."""
    closed = closing(events) if isinstance(events, Generator) else nullcontext()
    with explained(run), RunLog(run, trackers) as log, closed:
        for event in events:
            log.write(event)
            if isinstance(event, Finished):
                # Nothing comes after it, so what the trackers say in the end must come before.
                log.close()
            yield from (Warned(message) for tracker in trackers for message in tracker.messages())
            yield event


class RunLog:
    """An open log; lines reach the file at once, so that a kill loses none."""

    def __init__(self, run: Path, trackers: Sequence[Tracking] = ()) -> None:
        self.run = run
        self.trackers = tuple(trackers)
        self.file: TextIO | None = None

    def __enter__(self) -> "RunLog":
        self.file = (self.run / NAME).open("a", encoding="utf-8", buffering=1)
        return self

    def write(self, event: Event) -> None:
        if isinstance(event, Step):
            self._line(asdict(event))
            self._scalars(
                event.step,
                {"loss": event.loss, "learning_rate": event.learning_rate, **event.parts},
            )
        elif isinstance(event, Validated):
            self._line({"kind": "validation", **asdict(event)})
            self._scalars(
                event.step, {"validation/loss": event.loss, "validation/base": event.base_loss}
            )
        elif isinstance(event, Previewed):
            paths = [Path(path) for path in event.paths]
            self._track(lambda tracker: tracker.pictures(event.step, paths))

    def _line(self, entry: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(
                json.dumps({key: value for key, value in entry.items() if value != {}}) + "\n"
            )

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        self._track(lambda tracker: tracker.scalars(step, values))

    def _track(self, work: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            tracker.add(work)

    def close(self, *, wait: bool = True) -> None:
        """End log and trackers; waits for those, unless told otherwise."""
        if self.file is not None:
            self.file.close()
            self.file = None
        for tracker in self.trackers:
            tracker.close(wait=wait)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whoever interrupts for the second time does not want to wait for an upload.
        self.close(wait=kind is not KeyboardInterrupt)

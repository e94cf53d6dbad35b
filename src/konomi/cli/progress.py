"""Draws the events of a run: a live bar on a terminal, now and then a plain line elsewhere."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from konomi.cli.countdown import Countdown
from konomi.cli.screen import seconds_text
from konomi.errors import printable
from konomi.language import translated
from konomi.training.events import (
    Checkpointed,
    Event,
    Finished,
    Prepared,
    Previewed,
    Saved,
    Started,
    Step,
    Validated,
    Warned,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED = 130
SMOOTHING = 0.98
"""Memory of the shown loss, per step."""
WINDOW = 50
"""Steps over which speed and time left are measured."""
LINE_SECONDS = 10.0
LINE_SHARE = 0.05
"""Without a terminal a line is written after so long, or so much of the run, whichever comes
first."""


def follow(
    events: Iterator[Event], *, resume_command: Callable[[Path], str], done: str = "Wrote {path}"
) -> int:
    """Run a training to its end, showing how it goes. Returns the exit code.

    The loop itself sees Ctrl-C and SIGTERM, saves, and ends with `Finished.interrupted`.
    """
    if os.environ.get("RANK", "0") != "0":
        # One process of several shows the run; the others only do their part.
        return _code(_drain(events))
    finished, run = None, Path()
    for event in shown(events):
        if isinstance(event, Checkpointed):
            run = Path(event.path).parent.parent
        if isinstance(event, Finished):
            finished = event
    if finished is None:
        return 0
    if finished.interrupted:
        told = f"Stopped after step {finished.step}; saved. Continue with: {resume_command(run)}"
        print(translated(told), file=sys.stderr)
    else:
        print(translated(done.format(path=finished.path)))
        if finished.pictures:
            print(translated(f"Pictures: {', '.join(finished.pictures)}"))
        if finished.report:
            print(translated(f"Look at {finished.report}"))
        if finished.card:
            told = f"Recipe card to share (no paths but their last names in it): {finished.card}"
            print(translated(told))
        for lead, command in zip(("Next:", "Or:  "), finished.next_commands):
            print(translated(f"{lead} {command}"))
    return _code(finished)


def finished_or_interrupted(events: Iterator[Event], *, quiet: bool) -> Finished | int | None:
    """Go through work that the same command goes on with, shown unless `quiet`: how it finished,
    or, after Ctrl-C, the exit code.
    """
    try:
        return _drain(events if quiet else shown(events))
    except KeyboardInterrupt:
        told = "Interrupted; what is done is kept. The same command goes on with it."
        print(translated(told), file=sys.stderr)
        return INTERRUPTED


def shown(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, each drawn on its way."""
    # Closing the events before the traceback, if there is one, lets the loop put away what it
    # holds.
    with _display() as display, closing(events) if isinstance(events, Generator) else nullcontext():
        for event in events:
            display.show(event)
            yield event


@dataclass(slots=True)
class Pace:
    """What the steps so far say: smoothed loss, speed, time left."""

    total: int = 0
    step: int = 0
    loss: float = float("nan")
    learning_rate: float = 0.0
    memory: float = 0.0
    samples_per_second: float = 0.0
    preview: str = ""
    _sum: float = 0.0
    _weight: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _samples_seen: int | None = None

    def begin(self, event: Started) -> None:
        """Take over the run's length."""
        self.total, self.step = event.total_steps, event.first_step

    def add(self, event: Step) -> None:
        """Count one step in."""
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * event.loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        # Divided by the weight so far, the average starts at the first loss and not at zero
        # (Kingma & Ba 2015, 3).
        self.loss = self._sum / self._weight
        samples = 0 if self._samples_seen is None else event.samples_seen - self._samples_seen
        if self._samples_seen is not None or event.step == 1:
            self._recent.append((event.seconds, samples or event.samples_seen))
        self._samples_seen = event.samples_seen
        self.step, self.learning_rate, self.memory = event.step, event.learning_rate, event.memory
        seconds = sum(pair[0] for pair in self._recent)
        self.samples_per_second = (
            sum(pair[1] for pair in self._recent) / seconds if seconds else 0.0
        )

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the last steps; None before there are any."""
        if not self._recent:
            return None
        return (self.total - self.step) * sum(pair[0] for pair in self._recent) / len(self._recent)

    def text(self) -> str:
        """One line: loss, rate, speed, memory, time left."""
        parts = [
            f"loss {self.loss:.4f}",
            f"lr {self.learning_rate:.3g}",
            f"{self.samples_per_second:.3g} images/s",
        ]
        parts.append(
            f"{self.memory / 1024:.1f} GiB" if self.memory >= 1024 else f"{self.memory:.0f} MiB"
        )
        if self.seconds_left is not None:
            parts.append(f"{seconds_text(self.seconds_left)} left")
        return "  ".join(parts)


class Display(Protocol):
    """Shows events, between entering and leaving it as a context."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, *error: object) -> None: ...

    def show(self, event: Event) -> None: ...


class PlainLines:
    """For logs and pipes: a line every ten seconds or five percent, and one for everything that is
    not a step.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, prefix: str = "") -> None:
        self.clock = clock
        self.prefix = prefix
        """Which run the lines are of, where there are several."""
        self.pace = Pace()
        self.countdowns: dict[str, Countdown] = {}
        self.last_time = clock()
        self.last_step = 0

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()

    def show(self, event: Event) -> None:
        match event:
            case Step():
                self.pace.add(event)
                if self._is_time(event.step):
                    self._print(f"step {event.step}/{self.pace.total}  {self.pace.text()}")
            case Prepared():
                left = _left(self.countdowns, event, self.clock)
                if event.done == event.total or self._is_due():
                    self._print(f"preparing {event.what}: {event.done}/{event.total}{left}")
            case _:
                if isinstance(event, Started):
                    self.pace.begin(event)
                    self.last_step = event.first_step
                if text := sentence(event):
                    print(self.prefix + translated(text), flush=True)

    def _is_due(self) -> bool:
        return self.clock() - self.last_time >= LINE_SECONDS

    def _is_time(self, step: int) -> bool:
        far = step - self.last_step >= LINE_SHARE * self.pace.total
        if not (far or self._is_due() or step == self.pace.total):
            return False
        self.last_step = step
        return True

    def _print(self, text: str) -> None:
        self.last_time = self.clock()
        print(self.prefix + translated(text), flush=True)


class LiveBar:
    """For terminals: one bar that moves, and lines above it for what happens."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.task: TaskID | None = None
        self.preparing: dict[str, TaskID] = {}
        self.countdowns: dict[str, Countdown] = {}
        self.left = ""
        self.progress = _rich_progress(self._lines)

    def __enter__(self) -> "LiveBar":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        match event:
            case Step():
                self.pace.add(event)
                if self.task is not None:
                    self.progress.update(self.task, completed=event.step)
            case Prepared():
                self._prepare(event)
            case _:
                if isinstance(event, Started):
                    self._begin(event)
                if isinstance(event, Previewed) and event.paths:
                    self.pace.preview = event.paths[-1]
                elif text := sentence(event):
                    self.progress.console.print(translated(text), markup=False, highlight=False)

    def _begin(self, event: Started) -> None:
        for task in self.preparing.values():
            self.progress.remove_task(task)
        self.preparing.clear()
        self.pace.begin(event)
        self.task = self.progress.add_task(
            translated("training"), total=event.total_steps, completed=event.first_step
        )

    def _prepare(self, event: Prepared) -> None:
        if event.what not in self.preparing:
            self.preparing[event.what] = self.progress.add_task(
                translated(f"preparing {event.what}"), total=event.total
            )
        self.progress.update(self.preparing[event.what], completed=event.done, total=event.total)
        self.left = _left(self.countdowns, event, time.monotonic).strip()

    def _lines(self) -> list[str]:
        """What stands below the bar."""
        figures = (
            [translated(self.pace.text())]
            if self.task is not None and self.pace.samples_per_second
            else [translated(self.left)]
            if self.left
            else []
        )
        return (
            [*figures, translated(f"latest preview: {self.pace.preview}")]
            if self.pace.preview
            else figures
        )


def _left(known: dict[str, Countdown], event: Prepared, clock: Callable[[], float]) -> str:
    """`  3 min left`, where that is known."""
    text = known.setdefault(event.what, Countdown(clock)).text(event)
    return f"  {text}" if text else ""


def sentence(event: Event) -> str:
    """An event as a line of text; empty where it is not worth one."""
    match event:
        case Started(first_step=0):
            return (
                f"{event.total_steps} steps, {event.trainable_parameters:,} trainable parameters,"
                f" {event.device}, {event.precision}"
            )
        case Started():
            return (
                f"continuing after step {event.first_step} of {event.total_steps}, "
                f"{event.device}, {event.precision}"
            )
        case Validated():
            return (
                f"step {event.step}: validation loss {event.loss:.4f} (base {event.base_loss:.4f})"
            )
        case Previewed(paths=(_, *_)):
            return f"step {event.step}: preview {printable(event.paths[-1])}"
        case Saved():
            return "\n  ".join(
                [f"step {event.step}: saved {printable(event.path)}", *map(printable, event.works)]
            )
        case Checkpointed() | Step() | Prepared() | Finished() | Previewed():
            return ""
        case Warned():
            return f"note: {translated(printable(event.message))}"


def _rich_progress(lines: Callable[[], list[str]]) -> "Progress":
    """A bar with lines of text below it: beside it, a narrow terminal would have no room for
    either.
    """
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    from konomi.cli.screen import screen

    class BarAndLines(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from map(Text, lines())

    return BarAndLines(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        console=screen(),
        refresh_per_second=5,
    )


def _display() -> Display:
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return LiveBar()
    return PlainLines()


def _drain(events: Iterator[Event]) -> Finished | None:
    finished = None
    for event in events:
        if isinstance(event, Finished):
            finished = event
    return finished


def _code(finished: Finished | None) -> int:
    return INTERRUPTED if finished is not None and finished.interrupted else 0

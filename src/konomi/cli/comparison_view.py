"""What `konomi compare` shows: the plan, how its runs go, and what was found."""

import os
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from konomi.cli.evaluation_view import print_summary
from konomi.cli.plain import json_text
from konomi.cli.progress import INTERRUPTED, Pace, PlainLines, sentence
from konomi.cli.screen import screen, seconds_text
from konomi.errors import printable
from konomi.evaluation.best import best_of_methods
from konomi.evaluation.dreambooth_benchmark import MEASURES, PAPER
from konomi.evaluation.store import read_summary
from konomi.language import translated
from konomi.tasks.benchmarking import BenchmarkEvent, BenchmarkTable, SubjectBegun
from konomi.tasks.candidate_processes import FromRun, Trained
from konomi.tasks.comparing import ComparisonEvent, Planned
from konomi.training.events import Event, Finished, Prepared, Started, Step

if TYPE_CHECKING:
    from konomi.evaluation.plan import Plan
    from konomi.evaluation.summary import Summary


class RunsDisplay(Protocol):
    """Shows what several runs tell, between entering and leaving it as a context."""

    def __enter__(self) -> "RunsDisplay": ...

    def __exit__(self, *error: object) -> None: ...

    def show(self, run: str, event: Event | Trained) -> None:
        """`run` is empty for what belongs to all of them."""
        ...


def follow_comparison(events: Iterator[ComparisonEvent], *, as_json: bool) -> int:
    """Go through a comparison, showing how it goes. Returns the exit code."""
    plan, finished = None, None
    display = _display(quiet=as_json)
    with closing(events) if isinstance(events, Generator) else nullcontext(), display:
        for news in events:
            if isinstance(news, Planned):
                plan = news
                if not as_json:
                    print_plan(news.plan, news.jobs)
            elif isinstance(news, FromRun):
                display.show(news.run, news.event)
            elif isinstance(news, Finished):
                finished = news
            else:
                display.show("", news)
    if plan is None:
        return 0
    if finished is None:
        if as_json:
            print(json_text(plan))
        return 0
    if finished.interrupted:
        told = "Stopped; what is done is kept. The same command goes on with it."
        print(translated(told), file=sys.stderr)
        return INTERRUPTED
    summary = read_summary(Path(plan.folder))
    if as_json:
        print(json_text(summary))
    else:
        print(translated(f"Look at {finished.path}"))
        print_summary(summary)
        print_best(summary)
    return 1 if all(one.failure for one in summary.candidates[1:]) else 0


def follow_benchmark(events: Iterator[BenchmarkEvent], *, as_json: bool) -> int:
    """Go through a benchmark, showing how it goes; its table last. Returns the exit code."""
    table, finished = None, None
    display = _display(quiet=as_json)
    with closing(events) if isinstance(events, Generator) else nullcontext(), display:
        for news in events:
            match news:
                case SubjectBegun():
                    told = f"{printable(news.name)}, subject {news.number} of {news.total}"
                    if not as_json:
                        print(translated(told), flush=True)
                case BenchmarkTable():
                    table = news
                case FromRun():
                    display.show(news.run, news.event)
                case Finished():
                    finished = news
                case Planned():
                    pass
                case _:
                    display.show("", news)
    if finished is not None and finished.interrupted:
        told = "Stopped; what is done is kept. The same command goes on with it."
        print(translated(told), file=sys.stderr)
        return INTERRUPTED
    if table is None or finished is None:
        return 1
    if as_json:
        print(json_text(table))
        return 0
    print_benchmark(table)
    print(translated(f"Wrote {finished.path}"))
    return 0


def print_benchmark(table: BenchmarkTable) -> None:
    """Ours, and the paper's under it."""
    console = screen()
    titles = list(MEASURES.values())
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("")
    for title in titles:
        shown.add_column(title, justify="right")
    shown.add_column(translated("subjects"), justify="right")
    for row in table.rows:
        cells = [f"{row.values[title]:.3f}" if title in row.values else "" for title in titles]
        shown.add_row(Text(printable(row.id)), *cells, f"{row.subjects} / {table.subjects}")
    for paper in PAPER:
        cells = [f"{paper.values[t]:.3f}" if t in paper.values else "" for t in titles]
        shown.add_row(
            Text(translated(f"{translated(paper.name)} [Ruiz et al.]")),
            *cells,
            "30 / 30",
            style="dim",
        )
    console.print(shown)
    if table.note:
        console.print(
            Text(translated(f"note: {translated(printable(table.note))}"), style="yellow")
        )
    for row in table.rows:
        for subject, why in row.failures.items():
            told = f"{printable(row.id)}, {printable(subject)}: {translated(printable(why))}"
            console.print(Text(told, style="red"))


def print_best(summary: "Summary") -> None:
    """The best file of each method, where there are several: by the rule of the suggestion, among
    the method's own."""
    best = best_of_methods(summary)
    if len(best) < 2:
        return
    console = screen()
    for method, label in best.items():
        told = f"best of {printable(method)}: {translated(printable(label))}"
        console.print(Text(translated(told)))


def print_plan(plan: "Plan", jobs: int) -> None:
    """A row for each run, what all take, and what should be known."""
    console = screen()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("candidate", "steps", "images seen", "a step", "training"):
        table.add_column(translated(title), justify="left" if title == "candidate" else "right")
    for run in plan.runs:
        if run.failure:
            table.add_row(Text(printable(run.label)), "", "", "", translated("fails"), style="red")
            continue
        step = f"{run.seconds_per_step or 0:.3g} s"
        took = seconds_text(run.seconds or 0)
        table.add_row(
            Text(printable(run.label)),
            str(run.steps),
            str(run.images),
            translated(step),
            translated(took),
        )
    console.print(table)
    for run in plan.runs:
        if run.failure:
            told = f"{printable(run.label)} cannot be trained: {translated(printable(run.failure))}"
            console.print(Text(translated(told), style="red"))
    for note in plan.notes:
        console.print(Text(translated(f"note: {translated(printable(note))}"), style="yellow"))
    seconds = plan.seconds(jobs)
    if seconds is not None:
        told = (
            f"{len(plan.trainable)} runs on {plan.base}, {plan.budget} each: about "
            f"{seconds_text(seconds)} of training, then the drawing."
        )
        console.print(Text(translated(printable(told)), style="bold"))


class PlainRuns:
    """For logs and pipes: lines of each run behind its name."""

    def __init__(self) -> None:
        self._lines: dict[str, PlainLines] = {}

    def __enter__(self) -> "PlainRuns":
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()

    def show(self, run: str, event: Event | Trained) -> None:
        prefix = f"{printable(run)}: " if run else ""
        if isinstance(event, Trained):
            print(prefix + translated(_ended(event)), flush=True)
            return
        if run not in self._lines:
            self._lines[run] = PlainLines(prefix=prefix)
        self._lines[run].show(event)


class LiveRuns:
    """For terminals: a bar for each run, and lines above them for what happens."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            console=screen(),
            refresh_per_second=5,
        )
        self._pace: defaultdict[str, Pace] = defaultdict(Pace)
        self._bars: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> "LiveRuns":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, run: str, event: Event | Trained) -> None:
        pace = self._pace[run]
        match event:
            case Trained():
                self._remove(run)
                self._print(run, _ended(event))
            case Prepared():
                self._bar(run, f"preparing {event.what}", event.done, event.total)
                if event.done == event.total:
                    self._remove(run)
            case Started():
                pace.begin(event)
                self._bar(run, "training", event.first_step, event.total_steps)
            case Step():
                pace.add(event)
                told = translated(pace.text())
                self._bar(run, "training", event.step, pace.total, told=told)
            case _ if not run and (text := sentence(event)):
                self._print(run, text)

    def _bar(self, run: str, what: str, done: int, total: int, *, told: str = "") -> None:
        name = " ".join(filter(None, (printable(run), translated(what))))
        if (run, what) not in self._bars:
            self._bars[run, what] = self._progress.add_task(name, total=total, told="")
        self._progress.update(self._bars[run, what], completed=done, total=total, told=told)

    def _remove(self, run: str) -> None:
        for key in [key for key in self._bars if key[0] == run]:
            self._progress.remove_task(self._bars.pop(key))

    def _print(self, run: str, text: str) -> None:
        prefix = f"{printable(run)}: " if run else ""
        self._progress.console.print(prefix + translated(text), markup=False, highlight=False)


class _Quiet:
    """Nothing: a program reads the output."""

    def __enter__(self) -> "_Quiet":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, run: str, event: Event | Trained) -> None:
        return None


def _ended(event: Trained) -> str:
    if event.failure:
        return f"failed: {translated(printable(event.failure))}"
    return f"{event.step} steps done" if event.result else f"stopped after step {event.step}"


def _display(*, quiet: bool) -> RunsDisplay:
    if quiet:
        return _Quiet()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return LiveRuns()
    return PlainRuns()

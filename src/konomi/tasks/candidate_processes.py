"""Candidates trained in processes of their own, so many at a time."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from konomi.config.parse import parse_json
from konomi.evaluation.plan import PlannedRun
from konomi.storage.atomic import explained
from konomi.tasks import candidate_worker
from konomi.tasks.planning import recipe_path, run_folder
from konomi.tasks.reporting import SWITCH
from konomi.training import events
from konomi.training.events import Event, Finished
from konomi.training.stop import Stop

WAIT_SECONDS = 0.5
"""How long a request to stop may go unnoticed."""
COMMAND = (sys.executable, "-m", candidate_worker.__name__)
"""What is started for each run, before its recipe and its folder."""
ERRORS = "errors.txt"
"""In the run folder: what a process wrote that ended otherwise than by a line of its own."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A candidate has ended."""

    step: int = 0
    result: str = ""
    """The result file; empty where there is none."""
    failure: str = ""
    """Why not, in a line."""


@dataclass(frozen=True, slots=True)
class FromRun:
    """What the training of one candidate tells."""

    run: str
    event: Event | Trained


def train_in_processes(
    runs: Sequence[PlannedRun],
    folder: Path,
    *,
    jobs: int,
    threads: int,
    stop: Stop,
    until: Mapping[str, int] | None = None,
) -> Generator[FromRun, None, None]:
    """Train all, `jobs` at a time, telling everything that each of them tells; the last of each is
    `Trained`.

    folder: of the comparison.
    threads: of each process on the CPU.
    stop: asks all that are running to save and end; no other is started then.
    until: run -> the step after whose save it is to stop; others go to their end.
    """
    waiting = list(runs)
    told: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
    running: dict[str, _Process] = {}
    try:
        while running or (waiting and not stop.requested):
            while waiting and len(running) < jobs and not stop.requested:
                run = waiting.pop(0)
                running[run.id] = _Process(
                    run.id, folder, threads, (until or {}).get(run.id, 0), told.put
                )
            if stop.requested:
                for process in running.values():
                    process.ask_to_stop()
            try:
                name, line = told.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue
            event = running[name].heard(line)
            if isinstance(event, Trained):
                running.pop(name)
            if event is not None:
                yield FromRun(name, event)
    finally:
        for process in running.values():
            process.kill()


def environment_of(threads: int) -> dict[str, str]:
    """Variables of a process that trains a candidate. The comparison's page has what pages of its
    runs would have."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", SWITCH: "off"}


class _Process:
    """One worker, and what it has said so far of how it ended."""

    def __init__(
        self,
        name: str,
        folder: Path,
        threads: int,
        until: int,
        put: Callable[[tuple[str, dict[str, Any] | None]], None],
    ) -> None:
        self._run_folder = run_folder(folder, name)
        self._errors = self._run_folder / ERRORS
        self._finished: Finished | None = None
        self._failure = ""
        self._asked = False
        environment = os.environ | environment_of(threads)
        with explained(self._run_folder):
            self._run_folder.mkdir(parents=True, exist_ok=True)
            errors = self._errors.open("wb")
        with errors:
            self._process = subprocess.Popen(
                [*COMMAND, str(recipe_path(folder, name)), str(self._run_folder), str(until)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=environment,
                # A Ctrl-C on the terminal is the comparison's to pass on.
                start_new_session=True,
            )
        threading.Thread(target=self._read, args=(name, put), daemon=True).start()

    def heard(self, line: dict[str, Any] | None) -> Event | Trained | None:
        """What a line means; None for the end means that the process is gone."""
        if line is None:
            return self._ended()
        kind = line.pop("event", "")
        if kind == "Failed":
            self._failure = str(line["reason"])
            return None
        event = event_of(kind, line)
        if isinstance(event, Finished):
            self._finished = event
            return None
        return event

    def ask_to_stop(self) -> None:
        """Let it save and end."""
        if self._asked or self._process.stdin is None:
            return
        self._asked = True
        # It may have ended meanwhile.
        with suppress(OSError):
            self._process.stdin.write("stop\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it at once: what it saved is kept."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _read(self, name: str, put: Callable[[tuple[str, dict[str, Any] | None]], None]) -> None:
        with closing(self._process.stdout) as stdout:  # type: ignore[type-var]
            for line in stdout:  # type: ignore[union-attr]
                if line.startswith("{"):
                    put((name, parse_json(line)))
        put((name, None))

    def _ended(self) -> Trained:
        code = self._process.wait()
        self._close()
        if self._finished is not None and code == 0:
            self._errors.unlink(missing_ok=True)
            return Trained(self._finished.step, self._finished.path)
        return Trained(failure=self._failure or self._why(code))

    def _close(self) -> None:
        if self._process.stdin is not None:
            # What it was asked in vain is nobody's business.
            with suppress(OSError):
                self._process.stdin.close()

    def _why(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (was there enough memory?)" if name == "SIGKILL" else ""
            return f"the process was ended from outside by {name}{hint}; asked again it goes on."
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1][:300] if lines else f"exit code {code}"
        return f"ended unexpectedly: {last} (more in {self._errors.name} of its folder)"


def event_of(kind: str, values: dict[str, Any]) -> Event | None:
    """The event that a worker told; None for one that is not known here."""
    known: dict[str, Any] = {one.__name__: one for one in _EVENTS}
    if kind not in known:
        return None
    made: Event = known[kind](
        **{
            field.name: _tuple(values[field.name])
            for field in fields(known[kind])
            if field.name in values
        }
    )
    return made


_EVENTS = (
    events.Started,
    events.Prepared,
    events.Step,
    events.Validated,
    events.Previewed,
    events.Saved,
    events.Checkpointed,
    events.Warned,
    events.Finished,
)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

"""Trackers at work: each in a thread of its own, so that neither its waiting nor its failing
reaches the training.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import util

from konomi.errors import MissingExtraError
from konomi.training.optional_work import reason_of
from konomi.training.trackers import TRACKERS
from konomi.training.trackers.tracker import TrackedRun, Tracker


def chosen_trackers(names: Sequence[str]) -> tuple[type[Tracker], ...]:
    """The trackers of `run.trackers`. Raises MissingExtraError if the package of one is not
    installed.
    """
    chosen = tuple(tracker for tracker in TRACKERS if tracker.name in names)
    for tracker in chosen:
        # Looked for and not imported: an import takes its time, and a training that never starts
        # needs none.
        if tracker.extra and util.find_spec(tracker.package) is None:
            raise MissingExtraError(
                tracker.package, tracker.extra, f"run.trackers = {tracker.name!r}"
            )
    return chosen


class Tracking:
    """One tracker and the thread it works in."""

    def __init__(self, kind: type[Tracker], run: TrackedRun) -> None:
        self.kind, self.run = kind, run
        self.tracker: Tracker | None = None
        self.begun = self.failed = self.noted = False
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"tracker {kind.name}")
        self.waiting: deque[Future[None]] = deque()

    def add(self, work: Callable[[Tracker], None]) -> None:
        """Hand over something to do; returns at once."""
        self.begun = True
        self.waiting.append(self.thread.submit(self._do, work))

    def _do(self, work: Callable[[Tracker], None]) -> None:
        if self.failed:
            return
        # It has failed unless the end of this function is reached; the Future keeps what was
        # raised.
        self.failed = True
        if self.tracker is None:
            # Not opened before there is something to write: that would delay the first step.
            self.tracker = self.kind(self.run)
        work(self.tracker)
        self.failed = False

    def messages(self) -> Iterator[str]:
        """What the user should know of the work done so far."""
        if not self.noted and self.tracker is not None and self.tracker.note:
            self.noted = True
            yield self.tracker.note
        while self.waiting and self.waiting[0].done():
            error = self.waiting.popleft().exception()
            if error is not None:
                yield (
                    f"{self.kind.name} failed and is switched off ({reason_of(error)}). The "
                    "training is not affected."
                )

    def close(self, *, wait: bool = True) -> None:
        """End the record; once is enough. Without `wait`, what is still waiting is dropped."""
        if wait and self.begun:
            self.add(lambda tracker: tracker.close())
        self.begun = False
        self.thread.shutdown(wait=wait, cancel_futures=not wait)

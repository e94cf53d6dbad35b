"""Stopping on request. Before the first step there is nothing to save: Ctrl-C or SIGTERM ends at
once. From then on the first saves and ends, the second ends at once.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A request to save and stop, one for each run; any thread may make it. The loop looks at it
    after every step.
    """

    def __init__(self) -> None:
        self.requested = False
        self.saves = False
        """Whether a request is heeded: steps are being done, and what they learned is worth
        saving."""

    def request(self) -> None:
        """Finish the step at hand, save a checkpoint, and end. Before the first step there is
        nothing to save.
        """
        self.requested = True


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[Stop]:
    """SIGINT and SIGTERM raise KeyboardInterrupt until `stop.saves` is set; then the first sets
    the flag, and a second one is immediate. Outside the main thread only the flag works.
    """
    stop.saves = False
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested or not stop.saves:
            raise KeyboardInterrupt
        stop.request()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_on_input(lines: Iterable[str], stop: Stop) -> None:
    """For a thread of a process that works for another one: the line `stop` requests the stop, and
    the end of the lines ends the process at once.

    Whoever would take the result is gone then; a run is as safe as if it had been killed.
    """
    for line in lines:
        if line.strip() == "stop":
            stop.request()
    os._exit(1)

"""How long a piece of work still takes, from how long its parts took."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from konomi.cli.screen import seconds_text
from konomi.training.events import Prepared

_SURE_AFTER = 2.0
"""Seconds before anything is said: the first parts are slower than the rest."""


@dataclass(slots=True)
class Countdown:
    """Of one kind of work, told as `Prepared`. Where less is done than before, the next piece of it
    has begun."""

    clock: Callable[[], float] = time.monotonic
    _started: float | None = None
    _first: int = 0
    _done: int = 0

    def text(self, event: Prepared) -> str:
        """`3 min left`; empty before that is known, and at the end. What was there already takes no
        time and is not counted.
        """
        now = self.clock()
        if self._started is None or event.done < self._done:
            self._started, self._first = now, event.done
        self._done = event.done
        spent, done = now - self._started, event.done - self._first
        if spent < _SURE_AFTER or done < 1 or event.done >= event.total:
            return ""
        return f"{seconds_text((event.total - event.done) * spent / done)} left"

"""What holds for every reader of strangers' files: only konomi's own errors come out, soon, and
without much memory.

The default run tries a few examples of each reader; `.ci/run` gives all readers together a minute;
`KONOMI_FUZZ_EXAMPLES=2000 python -m pytest tests/fuzz` looks as long as you like.
"""

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from konomi.errors import KonomiError

LONG = 10
"""Seconds after which an example is broken off."""
LARGE = 2**30
"""Bytes by which no example may grow the process."""
CHARACTERS = st.characters(exclude_categories=["Cs"])
"""All but surrogates, which is what `text()` takes as well, after encoding a million characters to
find that out.
"""

fuzzed = settings(
    max_examples=int(os.environ.get("KONOMI_FUZZ_EXAMPLES", "25")),
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


@contextmanager
def bounded() -> Iterator[None]:
    """Nothing but a KonomiError, whose message is one line; in bounded time and memory."""
    before = _peak()
    try:
        with _ended_after(LONG):
            yield
    except KonomiError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000
    assert _peak() - before < LARGE


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@contextmanager
def _ended_after(seconds: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"still at work after {seconds} s")

    kept = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)

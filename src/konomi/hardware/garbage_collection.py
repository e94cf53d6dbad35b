"""When Python looks for objects that refer to each other in a circle."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """For work that makes an object for each of many images, none of them in a circle.

    Each few hundred new objects make Python look through the young ones, and now and then through
    all that the process holds, torch's among them: a third of the time of reading 100,000 rows.
    Also a decorator.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

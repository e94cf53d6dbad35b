"""Taking what is being trained off a base for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def paused(detach: Callable[[], object], attach: Callable[[], object]) -> Iterator[None]:
    """Inside, the base computes as if it had never been touched; afterwards all is back, whatever happened."""
    detach()
    try:
        yield
    finally:
        attach()

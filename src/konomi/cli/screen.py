"""The terminal, or what stands in its place."""

import sys

from rich.console import Console

WIDTH_IN_FILES = 160
"""Columns where output goes to a file or a pipe, which has no width of its own."""


def screen(*, error: bool = False) -> Console:
    """A console on standard output (or standard error) as it is now."""
    stream = sys.stderr if error else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else WIDTH_IN_FILES,
        highlight=False,
        markup=False,
        soft_wrap=False,
    )


def seconds_text(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

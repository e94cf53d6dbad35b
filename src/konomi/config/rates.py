"""Learning rates by step as web UIs write them: `5e-3:200, 1e-3:1000, 1e-4`."""

import math
import re

Rates = tuple[tuple[float, int | None], ...]
"""(learning rate, last step that has it, counted from 1); the last entry may leave it open."""

LARGEST = 10.0


def parse_rates(text: str) -> Rates:
    """The rates in their order. Raises ValueError saying which part is wrong."""
    found: list[tuple[float, int | None]] = []
    parts = text.split(",")
    for number, part in enumerate(parts, start=1):
        match = re.fullmatch(r"\s*([^\s:]+)\s*(?::\s*(\d{1,12})\s*)?", part)
        rate = _rate(match[1]) if match else None
        if match is None or rate is None:
            raise ValueError(
                f"{part.strip()!r} is not a learning rate from 0 to {LARGEST:g} with a step, such "
                "as 5e-3:200"
            )
        until = int(match[2]) if match[2] else None
        before = found[-1][1] if found else 0
        if until is None and number < len(parts):
            raise ValueError(
                f"{part.strip()!r} says no step up to which it holds; only the last may leave it "
                "out"
            )
        if until is not None and until <= (before or 0):
            raise ValueError(f"{part.strip()!r} ends at step {until}, not after step {before}")
        found.append((rate, until))
    if not any(rate for rate, _ in found):
        raise ValueError("every learning rate is 0: nothing would be learned")
    return tuple(found)


def checked_rates(text: str) -> str:
    """The text, if it is empty or can be read. Raises ValueError."""
    if text:
        parse_rates(text)
    return text


def highest_rate(text: str) -> float:
    """The largest of the rates."""
    return max(rate for rate, _ in parse_rates(text))


def rate_at(rates: Rates, step: int) -> float:
    """The rate in step `step` (0 for the first); beyond the last step named, the last rate."""
    return next((rate for rate, until in rates if until is None or step < until), rates[-1][0])


def _rate(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= LARGEST else None

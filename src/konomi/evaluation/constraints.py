"""What rules a file out, however like the subject it is: copies or training pictures known by
heart, a class that became the subject, everything else changed, or nothing learned.
"""

from dataclasses import dataclass

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.summary import Candidate, Estimate

NOISE = 0.1
"""A move of likeness that is no leak: this share of the distance between two of the base's pictures
of one prompt."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that a candidate breaks."""

    kind: str
    """`copies`, `memorisation`, `leak`, `drift`, `not_learned` or `failure`."""
    text: str
    """What, and by how much, in a few words."""
    excess: float
    """By how many times the limit it is beyond it; orders the bad from the worst."""


def breaches(
    candidate: Candidate, base: Candidate | None, limits: SuggestionConfig
) -> tuple[Breach, ...]:
    """Every limit that a candidate breaks; none where what would tell was not measured.

    candidate: the file at one weight.
    base: the base's own scores, where there are any.
    limits: the constants of the rule.
    """
    if candidate.failure:
        return (Breach("failure", candidate.failure, float("inf")),)
    found = (
        _copies(candidate, limits),
        _memorisation(candidate, limits),
        _leak(candidate, base, limits),
        _drift(candidate, base, limits),
        _not_learned(candidate, limits),
    )
    return tuple(breach for breach in found if breach is not None)


def likeness_of(candidate: Candidate, limits: SuggestionConfig) -> str | None:
    """The name of the score that says how well the goal was reached, where it was measured."""
    name = "likeness" if limits.goal == "subject" else "style_likeness"
    return name if name in candidate.scores else None


def _rise(estimate: Estimate) -> float | None:
    if estimate.difference is not None:
        return estimate.difference[0]
    return None if estimate.base is None else estimate.mean - estimate.base


def _copies(candidate: Candidate, limits: SuggestionConfig) -> Breach | None:
    share = candidate.scores.get("copies")
    if share is None or share.mean <= limits.copies:
        return None
    copies, count = round(share.mean * share.count), share.count
    text = f"copies training pictures ({copies} of {count})"
    return Breach("copies", text, _beyond(share.mean, limits.copies))


def _memorisation(candidate: Candidate, limits: SuggestionConfig) -> Breach | None:
    found = candidate.scores.get("memorisation")
    # With a handful of pictures the interval is wide, and rules out nothing by chance.
    if found is None or found.low <= limits.memorisation:
        return None
    text = f"knows its training pictures from others by their loss (AUC {found.mean:.2f})"
    return Breach("memorisation", text, _beyond(found.low, limits.memorisation))


def _leak(candidate: Candidate, base: Candidate | None, limits: SuggestionConfig) -> Breach | None:
    """Of the class and everything else together, and of the class alone: whichever is worse."""
    subject = candidate.scores.get("likeness")
    learned = None if subject is None else _rise(subject)
    if learned is None or learned <= 0:
        return None
    moved = [candidate.scores["leak"].mean] if "leak" in candidate.scores else []
    if "preservation" in candidate.scores:
        of_class = _rise(candidate.scores["preservation"])
        moved += [] if of_class is None else [of_class]
    own = None if base is None else base.scores.get("diversity")
    # A file that has hardly learned anything is not measured by the little that it has.
    allowed = max(limits.leak * learned, 0.0 if own is None else NOISE * own.mean)
    if not moved or max(moved) <= allowed:
        return None
    text = (
        f"lets the subject appear without being called (nearer by {max(moved):.2f}, "
        f"at most {allowed:.2f})"
    )
    return Breach("leak", text, _beyond(max(moved), allowed))


def _drift(candidate: Candidate, base: Candidate | None, limits: SuggestionConfig) -> Breach | None:
    own = None if base is None else base.scores.get("diversity")
    drift = candidate.scores.get("drift")
    if own is None or drift is None or drift.mean <= limits.drift * own.mean:
        return None
    text = f"changes other pictures ({drift.mean:.2f}, at most {limits.drift * own.mean:.2f})"
    return Breach("drift", text, _beyond(drift.mean, limits.drift * own.mean))


def _not_learned(candidate: Candidate, limits: SuggestionConfig) -> Breach | None:
    name = likeness_of(candidate, limits)
    learned = None if name is None else _rise(candidate.scores[name])
    if learned is None or learned > 0:
        return None
    if limits.goal == "style":
        return Breach("not_learned", "is no nearer to the style than the base", 1 - learned)
    return Breach("not_learned", "is no nearer to the subject than the base", 1 - learned)


def _beyond(value: float, limit: float) -> float:
    return value / limit if limit > 0 else 1 + value

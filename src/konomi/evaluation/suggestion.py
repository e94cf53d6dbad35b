"""Which file to keep: the rule of docs/evaluation.md.

Limits first (`constraints.py`). Of what breaks none the best trade-off of likeness and prompt
following; and of what lies within a standard error of it the simplest, the earliest or smallest
file (the one-standard-error rule: Breiman et al. 1984, "Classification and Regression Trees",
section 3.4.3).
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.constraints import Breach, breaches, likeness_of
from konomi.evaluation.reasons import Choice, reasons
from konomi.evaluation.scorers.scorer import Scores
from konomi.evaluation.statistics import difference
from konomi.evaluation.summary import Candidate, Estimate, Suggestion, Summary

ScoresOf = Mapping[str, Mapping[str, Scores]]
"""Candidate's id -> name of the score -> the score of each picture."""


def suggest(
    summary: Summary, limits: SuggestionConfig, *, scores: ScoresOf | None = None
) -> Suggestion:
    """The file to keep, with its reason; an empty id where every file breaks a limit.

    summary: what was measured.
    limits: the constants of the rule.
    scores: of each picture, where they are at hand: two files are then compared picture by picture,
    which tells them apart by far less than their intervals do.
    """
    files = [candidate for candidate in summary.candidates if candidate.method != "base"]
    base = next((one for one in summary.candidates if one.method == "base"), None)
    broken = {one.id: breaches(one, base, limits) for one in files}
    refused = {id: found[0].text for id, found in broken.items() if found}
    allowed = [one for one in files if not broken[one.id]]
    if not allowed:
        least = _least_bad(files, broken)
        texts = reasons(Choice(summary, limits, None, broken, least))
        return Suggestion("", *texts, "", refused)
    best = max(allowed, key=lambda one: trade_off(one, limits))
    chosen = _simplest(
        [one for one in allowed if _as_good(one, best, limits, scores)], limits.prefer
    )
    texts = reasons(Choice(summary, limits, chosen, broken, None))
    return Suggestion(chosen.id, *texts, _command(summary, chosen), refused)


def trade_off(candidate: Candidate, limits: SuggestionConfig) -> float:
    """Likeness x prompt following to the power of `limits.prompt_weight`; what was not measured
    counts as 1, what is below 0 as 0."""
    powers: list[float] = [
        max(mean, 0.0) ** power for mean, power, _ in _factors(candidate, limits)
    ]
    return math.prod(powers)


@dataclass(frozen=True, slots=True)
class _Names:
    likeness: str | None
    following: str | None


def _names(candidate: Candidate, limits: SuggestionConfig) -> _Names:
    follows = "prompt_following" in candidate.scores and limits.prompt_weight > 0
    return _Names(likeness_of(candidate, limits), "prompt_following" if follows else None)


def _factors(candidate: Candidate, limits: SuggestionConfig) -> list[tuple[float, float, float]]:
    """(mean, power, standard error) of each factor."""
    names = _names(candidate, limits)
    wanted = ((names.likeness, 1.0), (names.following, limits.prompt_weight))
    return [
        (candidate.scores[name].mean, power, _error(candidate.scores[name]))
        for name, power in wanted
        if name is not None
    ]


def _error(estimate: Estimate) -> float:
    """About the standard error; of the difference to the base, where it was measured, because what
    prompts have in common is no error between two files."""
    low, high = estimate.low, estimate.high
    if estimate.difference is not None:
        _, low, high = estimate.difference
    return (high - low) / (2 * 1.96)


def _as_good(
    one: Candidate, best: Candidate, limits: SuggestionConfig, scores: ScoresOf | None
) -> bool:
    if one is best:
        return True
    lost = trade_off(best, limits) - trade_off(one, limits)
    if scores is not None and one.id in scores and best.id in scores:
        values = [_by_picture(file, limits, scores[file.id]) for file in (best, one)]
        if values[0].keys() & values[1].keys():
            paired = difference(values[0], values[1])
            return paired.mean <= limits.tolerance * paired.error
    relative = sum(
        (power * error / mean) ** 2 for mean, power, error in _factors(best, limits) if mean > 0
    )
    return lost <= limits.tolerance * trade_off(best, limits) * math.sqrt(relative)


def _by_picture(
    candidate: Candidate, limits: SuggestionConfig, scores: Mapping[str, Scores]
) -> dict[tuple[int, int], float]:
    """The trade-off of each picture."""
    names = _names(candidate, limits)
    alike = scores.get(names.likeness or "")
    follows = scores.get(names.following or "")
    if alike is None or follows is None:
        return dict(alike or follows or {})
    return {
        place: max(alike[place], 0) * max(follows[place], 0) ** limits.prompt_weight
        for place in alike
        if place in follows
    }


def _simplest(good: Sequence[Candidate], prefer: str) -> Candidate:
    if prefer == "auto":
        prefer = "earliest" if len({one.run for one in good}) == 1 else "smallest"
    if prefer == "earliest":
        return min(good, key=lambda one: (one.step, abs(one.weight), one.bytes))
    return min(good, key=lambda one: (one.bytes, one.step, abs(one.weight)))


def _least_bad(
    files: Sequence[Candidate], broken: Mapping[str, Sequence[Breach]]
) -> Candidate | None:
    """Of those that could be measured the one whose worst breach is least."""
    measured = [one for one in files if not one.failure]
    return min(
        measured, key=lambda one: max(breach.excess for breach in broken[one.id]), default=None
    )


def _command(summary: Summary, chosen: Candidate) -> str:
    prompt = next((p.text for p in summary.prompts if p.kind == "subject"), "")
    prompt = prompt or (summary.prompts[0].text if summary.prompts else "a picture")
    words = ["konomi", "generate", prompt, "--base"]
    if chosen.whole_model:
        # Between the base and a model there is no file to name.
        return shlex.join([*words, chosen.file]) if chosen.weight == 1 else ""
    weight = "" if chosen.weight == 1 else f":{chosen.weight:g}"
    words.append(summary.base)
    for file in (*summary.adapters, f"{chosen.file}{weight}"):
        words += ["--add", file]
    return shlex.join(words)

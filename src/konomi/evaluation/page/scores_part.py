"""What was measured of each candidate: the table, and likeness against prompt following."""

from collections.abc import Sequence

from konomi.evaluation.page.content import Chart, Fact, ScoreCell, ScoreRow, ScoreTable
from konomi.evaluation.page.plots import DRIFTS, Point, trade_off
from konomi.evaluation.page.texts import Words
from konomi.evaluation.summary import Candidate, Estimate, ScorerNote, Summary
from konomi.language import translated

UP = ("likeness", "style_likeness")
"""Scores that can be the height of the trade-off: the first that was measured."""
ACROSS, COLOUR = "prompt_following", "drift"


def base_of(summary: Summary) -> Candidate | None:
    return next((one for one in summary.candidates if one.method == "base"), None)


def others(summary: Summary) -> list[Candidate]:
    return [one for one in summary.candidates if one.method != "base"]


def suggested(summary: Summary) -> Candidate | None:
    wanted = summary.suggestion.id if summary.suggestion is not None else ""
    return next((one for one in summary.candidates if wanted and one.id == wanted), None)


def label_of(candidate: Candidate, words: Words) -> str:
    return translated(candidate.label, words.language)


def numbers_of(summary: Summary) -> dict[str, str]:
    """Candidate -> its number on the page."""
    return {one.id: str(number) for number, one in enumerate(others(summary), 1)}


def trade_off_chart(summary: Summary, words: Words) -> Chart | None:
    numbers, kept = numbers_of(summary), suggested(summary)
    up = next((name for name in UP if any(name in one.scores for one in others(summary))), None)
    there = [
        one
        for one in summary.candidates
        if up is not None and up in one.scores and ACROSS in one.scores
    ]
    if up is None or not any(one.id in numbers for one in there):
        return None
    bounds = _bounds(
        [o.scores[COLOUR].mean for o in there if COLOUR in o.scores and o.id in numbers]
    )
    points = [
        Point(
            _spread(one.scores[ACROSS]),
            _spread(one.scores[up]),
            numbers.get(one.id, ""),
            _drift_colour(one, bounds) if one.id in numbers else "soft",
            kept=one is kept,
        )
        for one in there
    ]
    key = tuple(
        Fact(colour, words("drift_from", low=figure(low), high=figure(high)))
        for colour, low, high in zip(DRIFTS, bounds, bounds[1:], strict=False)
    )
    titles = {one.name: words.score(one.name, one.title) for one in summary.scorers}
    return Chart(
        words("trade_off"),
        trade_off(points),
        words("trade_off_note"),
        key,
        horizontal=titles.get(ACROSS, words.score(ACROSS, "")),
        vertical=titles.get(up, words.score(up, "")),
    )


def _spread(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.mean, estimate.low, estimate.high


def _bounds(values: Sequence[float]) -> list[float]:
    """Of the colours, one more than there are; none where nothing varies."""
    if not values or max(values) == min(values):
        return []
    low, high = min(values), max(values)
    return [low + (high - low) * part / len(DRIFTS) for part in range(len(DRIFTS) + 1)]


def _drift_colour(candidate: Candidate, bounds: Sequence[float]) -> str:
    if COLOUR not in candidate.scores:
        return "soft"
    if not bounds:
        return DRIFTS[0]
    value = candidate.scores[COLOUR].mean
    return DRIFTS[min(sum(value > bound for bound in bounds[1:]), len(DRIFTS) - 1)]


def score_table(summary: Summary, words: Words) -> ScoreTable | None:
    """All candidates and all scores that were measured; None without any."""
    kept, numbers = suggested(summary), numbers_of(summary)
    measured = [
        scorer
        for scorer in summary.scorers
        if any(scorer.name in one.scores for one in summary.candidates)
    ]
    if not measured and not any(one.failure for one in summary.candidates):
        return None
    best = {scorer.name: _best(summary, scorer) for scorer in measured}
    rows = tuple(
        ScoreRow(
            numbers.get(one.id, ""),
            words("base") if one.method == "base" else label_of(one, words),
            _candidate_note(one),
            tuple(_cell(one, scorer, best[scorer.name], words) for scorer in measured),
            kept=one is kept,
            failure=translated(one.failure, words.language),
        )
        for one in summary.candidates
    )
    titles = [words.score(one.name, one.title) for one in measured]
    columns = tuple(
        Fact(title, words("higher" if one.higher_is_better else "lower"))
        for title, one in zip(titles, measured, strict=True)
    )
    explained = (
        Fact(title, " ".join(filter(None, (one.source, translated(one.note, words.language)))))
        for title, one in zip(titles, measured, strict=True)
    )
    return ScoreTable(columns, rows, (*_references(summary, words), *explained))


def _best(summary: Summary, scorer: ScorerNote) -> float | None:
    """The best mean of all candidates, where they differ."""
    means = [one.scores[scorer.name].mean for one in others(summary) if scorer.name in one.scores]
    return (max if scorer.higher_is_better else min)(means) if len(set(means)) > 1 else None


def _references(summary: Summary, words: Words) -> list[Fact]:
    if not summary.references:
        return []
    key = "references" if summary.references_held_out else "references_trained"
    return [Fact("", words(key, pictures=words.counted("pictures", summary.references)))]


def _candidate_note(candidate: Candidate) -> str:
    if candidate.method == "base":
        return ""
    size = f"{candidate.bytes / 2**20:.1f} MiB" if candidate.bytes else ""
    return ", ".join(part for part in (candidate.method, size) if part)


def _cell(
    candidate: Candidate, scorer: ScorerNote, best: float | None, words: Words
) -> ScoreCell | None:
    estimate, unit = candidate.scores.get(scorer.name), scorer.unit
    if estimate is None:
        return None
    note = ""
    if estimate.difference is not None:
        mean, low, high = estimate.difference
        note = words(
            "against_base",
            sign="+" if mean >= 0 else "",
            mean=figure(mean, unit),
            low=figure(low, unit),
            high=figure(high, unit),
        )
    return ScoreCell(
        figure(estimate.mean, unit),
        words("interval", low=figure(estimate.low, unit), high=figure(estimate.high, unit)),
        best=candidate.method != "base" and best == estimate.mean,
        note=note,
    )


def figure(value: float, unit: str = "") -> str:
    """As many digits as say something: losses move in the third place behind the point."""
    if unit == "loss":
        return f"{value:.4f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3f}"

"""What was measured, as a table, and the suggestion under it."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from konomi.cli.screen import screen
from konomi.errors import printable
from konomi.evaluation.summary import Candidate, Estimate, ScorerNote, Summary
from konomi.language import language, translated

_FIRST = ("likeness", "prompt_following", "drift", "leak", "copies", "memorisation",
          "diversity", "style_likeness")  # fmt: skip
_CELL = 10
"""Characters of `0.71 ±0.05`, with a sign to spare."""


def print_summary(summary: Summary) -> None:
    """A row for each candidate, with its scores; what failed with its reason; the suggestion
    last.
    """
    console = screen()
    chosen = summary.suggestion.id if summary.suggestion is not None else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(translated("file"), overflow="fold")
    scorers = _that_fit(summary, console.width)
    for scorer in scorers:
        table.add_column(_heading(scorer), justify="right")
    for candidate in summary.candidates:
        if not candidate.failure:
            row = _row(candidate, scorers)
            table.add_row(*row, style="bold" if candidate.id == chosen else "")
    console.print(table)
    if left := len(summary.scorers) - len(scorers):
        console.print(Text(translated(f"{left} more scores are on the page."), style="dim"))
    told = f"↑ higher is better, ↓ lower; ± is the 95 % interval. {_compared_with(summary)}"
    console.print(Text(translated(told.rstrip()), style="dim"))
    for candidate in summary.candidates:
        if candidate.failure:
            label = translated(printable(candidate.label))
            failed = f"{label} was not measured: {translated(printable(candidate.failure))}"
            console.print(Text(translated(failed), style="red"))
    _print_suggestion(summary)


def _print_suggestion(summary: Summary) -> None:
    if summary.suggestion is None:
        return
    console, suggestion = screen(), summary.suggestion
    reason = suggestion.reason_ja if language() == "ja" else suggestion.reason
    console.print(Text(printable(reason), style="bold"))
    if suggestion.command:
        # Never broken: a command is copied.
        console.print(Text(printable(suggestion.command)), soft_wrap=True)


def _that_fit(summary: Summary, width: int) -> list[ScorerNote]:
    """The scores that the screen has room for, the most telling ones first."""
    rank = {name: place for place, name in enumerate(_FIRST)}
    ordered = sorted(summary.scorers, key=lambda scorer: rank.get(scorer.name, len(rank)))
    labels = [cell_len(_label(candidate)) for candidate in summary.candidates]
    room = width - max(labels, default=0)
    fitting: list[ScorerNote] = []
    for scorer in ordered:
        room -= max(cell_len(_heading(scorer)), _CELL) + 2
        if room < 0 and fitting:
            break
        fitting.append(scorer)
    return [scorer for scorer in summary.scorers if scorer in fitting]


def _heading(scorer: ScorerNote) -> str:
    direction = "↑" if scorer.higher_is_better else "↓"
    return f"{translated(scorer.name.replace('_', ' '))} {direction}"


def _label(candidate: Candidate) -> str:
    return translated("base" if candidate.method == "base" else printable(candidate.label))


def _row(candidate: Candidate, scorers: Sequence[ScorerNote]) -> list[str]:
    cells = (_cell(candidate.scores.get(scorer.name), scorer.unit) for scorer in scorers)
    return [_label(candidate), *cells]


def _cell(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return ""
    reach = (estimate.high - estimate.low) / 2
    # Losses move in the third place behind the point.
    places = 4 if unit == "loss" else 2
    return f"{estimate.mean:.{places}f} ±{reach:.{places}f}"


def _compared_with(summary: Summary) -> str:
    if not summary.references:
        return ""
    if summary.references_held_out and summary.references == 1:
        return "Compared with 1 picture that was not trained on."
    if summary.references_held_out:
        return f"Compared with {summary.references} pictures that were not trained on."
    if summary.references == 1:
        return "Compared with 1 picture that was trained on, which flatters."
    return f"Compared with {summary.references} pictures that were trained on, which flatters."

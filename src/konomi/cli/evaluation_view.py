"""What was measured, as a table, and the suggestion under it."""

from rich.table import Table
from rich.text import Text

from konomi.cli.screen import screen
from konomi.errors import printable
from konomi.evaluation.summary import Candidate, Estimate, Summary
from konomi.language import language, translated


def print_summary(summary: Summary) -> None:
    """A row for each candidate, with its scores; what failed with its reason; the suggestion
    last.
    """
    console = screen()
    chosen = summary.suggestion.id if summary.suggestion is not None else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(translated("file"), overflow="fold")
    for scorer in summary.scorers:
        direction = "↑" if scorer.higher_is_better else "↓"
        name = translated(scorer.name.replace("_", " "))
        table.add_column(f"{name} {direction}", justify="right")
    for candidate in summary.candidates:
        if not candidate.failure:
            table.add_row(*_row(candidate, summary), style="bold" if candidate.id == chosen else "")
    console.print(table)
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


def _row(candidate: Candidate, summary: Summary) -> list[str]:
    own = "base" if candidate.method == "base" else printable(candidate.label)
    label = translated(own)
    return [label, *(_cell(candidate.scores.get(scorer.name)) for scorer in summary.scorers)]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    reach = (estimate.high - estimate.low) / 2
    return f"{estimate.mean:.2f} ±{reach:.2f}"


def _compared_with(summary: Summary) -> str:
    if not summary.references:
        return ""
    if summary.references_held_out:
        return f"Compared with {summary.references} pictures that were not trained on."
    return f"Compared with {summary.references} pictures that were trained on, which flatters."

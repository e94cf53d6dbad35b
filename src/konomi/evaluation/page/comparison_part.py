"""The page of an evaluation or a comparison, from its `Summary` and the pictures beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from konomi.evaluation.page.content import (
    Advice,
    Chart,
    Column,
    Command,
    Example,
    Fact,
    Grid,
    Page,
    Pair,
    Row,
    Shown,
)
from konomi.evaluation.page.pictures import embedded
from konomi.evaluation.page.plots import SERIES, Curve, curves, smoothed
from konomi.evaluation.page.run_files import read_diary
from konomi.evaluation.page.scores_part import (
    UP,
    base_of,
    figure,
    label_of,
    numbers_of,
    others,
    score_table,
    suggested,
    trade_off_chart,
)
from konomi.evaluation.page.texts import Words
from konomi.evaluation.page.training_part import training_curves, training_page
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.summary import Candidate, Suggestion, Summary
from konomi.language import translated

PAIRS_BUDGET = 3 * 2**20
GRIDS_BUDGET = 9 * 2**20
"""Bytes of the page for all pictures of all candidates."""
COPIES_BUDGET = 2**20
MOST_COLUMNS = 8
"""Candidates side by side; the others are folded away."""
MOST_COPIES = 12
FIRST = ("subject", "context", "class", "unrelated")
"""Of which kinds of prompt one picture is shown first."""


def comparison_page(folder: Path, summary: Summary, words: Words) -> Page:
    """Everything that was measured; `folder` holds the summary and its pictures."""
    kept = suggested(summary)
    base, candidates = base_of(summary), others(summary)
    shown = _grid_pictures(folder, summary)
    main, folded = _side_by_side(candidates, kept)
    advice, command = _advice(summary, kept, words)
    run = None if kept is None else _run(folder, kept)
    origin = Page("", "", "") if run is None else training_page(run, words, pictures=False)
    return Page(
        title=words("title_comparison"),
        lead=words(
            "lead_comparison",
            candidates=words.counted("candidates", len(candidates)),
            base=summary.base,
            prompts=words.counted("prompts", len(summary.prompts)),
            seeds=words.counted("seeds", len(summary.seeds)),
        ),
        language=words.language,
        advice=advice,
        commands=command,
        pairs=_pairs(folder, summary, base, kept or next(iter(main), None), words),
        learned_from=origin.learned_from,
        grids=_grids(summary, base, main, shown, words),
        folded_grids=tuple(
            grid for some in folded for grid in _grids(summary, base, some, shown, words)
        ),
        trade_off=trade_off_chart(summary, words),
        curves=_curves(folder, candidates, words),
        scores=score_table(summary, words),
        copies=_copies(folder, candidates, words),
        changed=origin.changed,
        settings=origin.settings,
        facts=(
            Fact(words("fact_base"), summary.base),
            *(Fact(words("fact_encoder"), name) for name in _encoders(summary)),
        ),
        notes=tuple(translated(note, words.language) for note in summary.notes),
    )


def _encoders(summary: Summary) -> list[str]:
    return list(dict.fromkeys(summary.encoders.values()))


def _run(folder: Path, candidate: Candidate) -> Path | None:
    """The run folder of a candidate, where it is still there."""
    places = (folder / candidate.run, Path(candidate.run)) if candidate.run else ()
    return next((place for place in places if (place / "recipe.toml").is_file()), None)


def _advice(
    summary: Summary, kept: Candidate | None, words: Words
) -> tuple[Advice | None, tuple[Command, ...]]:
    found = summary.suggestion
    if found is None:
        return None, ()
    labels = {one.id: label_of(one, words) for one in summary.candidates}
    advice = Advice(
        words("no_suggestion")
        if kept is None
        else words("suggestion", label=label_of(kept, words)),
        _reason(found, kept, words),
        tuple(
            Fact(labels.get(name, name), translated(why, words.language))
            for name, why in found.refused.items()
        ),
    )
    return advice, (Command(words("draw"), found.command),) if found.command else ()


def _reason(found: Suggestion, kept: Candidate | None, words: Words) -> str:
    """Without the candidate's name, which stands over it."""
    reason = found.reason_ja if words.language == "ja" and found.reason_ja else found.reason
    if kept is None or not reason.startswith(f"{label_of(kept, words)}: "):
        return reason
    rest = reason.removeprefix(f"{label_of(kept, words)}: ")
    return rest[:1].upper() + rest[1:]


def _grid_pictures(folder: Path, summary: Summary) -> dict[str, Shown]:
    files = [path for one in summary.candidates for path in one.pictures.values()]
    return embedded(files, beside=folder, budget=GRIDS_BUDGET)


def _side_by_side(
    candidates: Sequence[Candidate], kept: Candidate | None
) -> tuple[list[Candidate], list[list[Candidate]]]:
    """Those that are shown at once, in their order: the suggested one and the most like of each
    method before others; and the rest in groups.
    """
    drawn = [one for one in candidates if one.pictures]
    if len(drawn) <= MOST_COLUMNS:
        return drawn, []
    best: dict[str, Candidate] = {}
    for one in sorted(drawn, key=_likeness, reverse=True):
        best.setdefault(one.method, one)
    wanted = [*([kept] if kept is not None else []), *best.values(), *drawn]
    chosen = set(list(dict.fromkeys(one.id for one in wanted))[:MOST_COLUMNS])
    rest = [one for one in drawn if one.id not in chosen]
    groups = [rest[at : at + MOST_COLUMNS] for at in range(0, len(rest), MOST_COLUMNS)]
    return [one for one in drawn if one.id in chosen], groups


def _likeness(candidate: Candidate) -> float:
    found = (candidate.scores[name].mean for name in UP if name in candidate.scores)
    return next(found, float("-inf"))


def _pairs(
    folder: Path,
    summary: Summary,
    base: Candidate | None,
    candidate: Candidate | None,
    words: Words,
) -> tuple[Pair, ...]:
    if base is None or candidate is None:
        return ()
    places = [(prompt, f"{number}-0") for number, prompt in _of_each_kind(summary.prompts)]
    there = [
        (prompt, base.pictures[place], candidate.pictures[place])
        for prompt, place in places
        if place in base.pictures and place in candidate.pictures
    ]
    shown = embedded(
        [name for _, *names in there for name in names], beside=folder, budget=PAIRS_BUDGET
    )
    return tuple(
        Pair(prompt.text, words(f"kind_{prompt.kind}"), shown[before], shown[after])
        for prompt, before, after in there
        if before in shown and after in shown
    )


def _of_each_kind(
    prompts: Iterable[EvaluationPrompt],
) -> list[tuple[int, EvaluationPrompt]]:
    """The first prompt of each kind."""
    first: dict[str, tuple[int, EvaluationPrompt]] = {}
    for number, prompt in enumerate(prompts):
        first.setdefault(prompt.kind, (number, prompt))
    return [first[kind] for kind in FIRST if kind in first]


def _grids(
    summary: Summary,
    base: Candidate | None,
    candidates: Sequence[Candidate],
    shown: dict[str, Shown],
    words: Words,
) -> tuple[Grid, ...]:
    numbers, kept = numbers_of(summary), suggested(summary)
    columns = [*([base] if base is not None else []), *candidates]
    heads = tuple(
        Column(words("base"))
        if one is base
        else Column(label_of(one, words), numbers[one.id], kept=one is kept)
        for one in columns
    )
    grids = []
    for number, prompt in enumerate(summary.prompts):
        rows = tuple(
            Row(
                words("seed", seed=value),
                tuple(shown.get(one.pictures.get(f"{number}-{seed}", "")) for one in columns),
            )
            for seed, value in enumerate(summary.seeds)
        )
        filled = tuple(row for row in rows if any(row.pictures))
        if filled:
            note = words(f"kind_{prompt.kind}")
            grids.append(Grid(prompt.text, note, heads, filled, has_base=base is not None))
    return tuple(grids)


def _copies(folder: Path, candidates: Sequence[Candidate], words: Words) -> tuple[Example, ...]:
    found = [(one, copy) for one in candidates for copy in one.copies]
    found.sort(key=lambda pair: -pair[1].similarity)
    found = found[:MOST_COPIES]
    shown = embedded(
        [name for _, copy in found for name in (copy.picture, copy.training)],
        beside=folder,
        budget=COPIES_BUDGET,
        largest=320,
    )
    return tuple(
        Example(
            shown.get(copy.picture),
            label_of(one, words),
            words("copy_text", similarity=figure(copy.similarity), usual=figure(copy.usual)),
            None if copy.training not in shown else replace(shown[copy.training], file=""),
            Path(copy.training).name,
        )
        for one, copy in found
    )


def _curves(folder: Path, candidates: Sequence[Candidate], words: Words) -> tuple[Chart, ...]:
    """All of one run, or the smoothed losses of several."""
    runs = list(dict.fromkeys(run for one in candidates if (run := _run(folder, one)) is not None))
    diaries = {run: read_diary(run) for run in runs[: len(SERIES)]}
    if len(diaries) == 1:
        return tuple(training_curves(next(iter(diaries.values())), words))
    lines, key = [], []
    for colour, (run, diary) in zip(SERIES, diaries.items(), strict=False):
        if len(diary.steps) > 1:
            lines.append(Curve(diary.steps, smoothed(diary.losses), colour))
            key.append(Fact(colour, run.name))
    if not lines:
        return ()
    return (
        Chart(
            words("runs"),
            curves(lines, height=2.6),
            words("runs_note"),
            tuple(key),
            horizontal=words("axis_step"),
        ),
    )

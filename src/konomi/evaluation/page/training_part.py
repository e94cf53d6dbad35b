"""The page of a training run, from what lies in its folder: recipe, log, previews, saved files.

A part whose file is missing or unreadable is left out.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.config.changed_settings import changed_settings, written
from konomi.config.load import recipe_data
from konomi.config.overrides import method_title
from konomi.config.parse import parse_json
from konomi.config.recipe import Recipe
from konomi.errors import DataError, FileFormatError
from konomi.evaluation.page.content import (
    Chart,
    Column,
    Command,
    Fact,
    Grid,
    Page,
    Pair,
    Row,
    Shown,
)
from konomi.evaluation.page.history_part import hurting_images, tree_rows
from konomi.evaluation.page.pictures import embedded
from konomi.evaluation.page.plots import Curve, curves, smoothed
from konomi.evaluation.page.run_files import (
    Diary,
    is_model,
    read_diary,
    recipe_of,
    result_of,
)
from konomi.evaluation.page.texts import Words
from konomi.generation.infotext import read_infotext
from konomi.storage.regular import check_regular

PICTURES_BUDGET = 6 * 2**20
LEARNED_BUDGET = 2**20
MOST_LEARNED = 12
"""Training pictures shown."""
MOST_COLUMNS = 9
"""Steps whose previews are shown; of more, evenly chosen ones."""
_PREVIEW = re.compile(r"step-(\d{6,9})-(\d{2,3})\.png")
_LARGEST_LINE = 2**20


def training_page(run: Path, words: Words, *, pictures: bool = True) -> Page:
    """Everything that is known of the run; its previews where `pictures`."""
    recipe, diary = recipe_of(run), read_diary(run)
    steps = _preview_steps(run) if pictures else {}
    shown = embedded(
        [name for names in steps.values() for name in names.values()],
        beside=run,
        budget=PICTURES_BUDGET,
    )
    prompts = _prompts(run, steps)
    learned, count = _learned_from(run)
    return Page(
        title=recipe.run.name if recipe is not None else run.name,
        lead=_lead(recipe, diary, count, words),
        language=words.language,
        step=diary.steps[-1] if diary.steps else 0,
        commands=_commands(run, recipe, prompts, diary, words),
        pairs=_pairs(steps, shown, prompts),
        learned_from=tuple(learned),
        grids=_grids(steps, shown, prompts, words),
        curves=tuple(training_curves(diary, words)),
        hurting=hurting_images(run, words) if pictures else (),
        tree=tree_rows(run, words),
        changed=() if recipe is None else tuple(_changed(recipe)),
        settings=() if recipe is None else tuple(_flat(recipe_data(recipe))),
        facts=tuple(_facts(run, recipe, diary, words)),
    )


def training_curves(diary: Diary, words: Words) -> list[Chart]:
    """Loss, validation and learning rate; fewer where there is too little for a curve."""
    charts = []
    if len(diary.steps) > 1:
        usual = sorted(diary.losses)[int(0.98 * (len(diary.losses) - 1))]
        drawn = curves(
            [
                Curve(diary.steps, diary.losses, "pale", 0.9),
                Curve(diary.steps, smoothed(diary.losses)),
            ],
            top=usual * 1.1 if usual > 0 else None,
        )
        charts.append(
            Chart(words("loss"), drawn, words("loss_note"), horizontal=words("axis_step"))
        )
    if len(diary.validated) > 1:
        steps, losses, bases = zip(*diary.validated, strict=True)
        drawn = curves(
            [Curve(steps, bases, "soft", 1.2, dashed=True), Curve(steps, losses, dots=True)]
        )
        best = steps[losses.index(min(losses))]
        note = words("validation_note", step=best)
        charts.append(Chart(words("validation"), drawn, note, horizontal=words("axis_step")))
    if len(set(diary.rates)) > 1:
        drawn = curves([Curve(diary.steps, diary.rates, "ink", 1.4)], bottom=0)
        charts.append(Chart(words("rate"), drawn, horizontal=words("axis_step")))
    return charts


def _preview_steps(run: Path) -> dict[int, dict[int, str]]:
    """Step -> number of the prompt -> path from the run; at most `MOST_COLUMNS` steps, the first
    and the last among them.
    """
    found: dict[int, dict[int, str]] = {}
    folder = run / "previews"
    if folder.is_dir():
        for path in folder.iterdir():
            if match := _PREVIEW.fullmatch(path.name):
                found.setdefault(int(match[1]), {})[int(match[2])] = f"previews/{path.name}"
    steps = sorted(found)
    if len(steps) > MOST_COLUMNS:
        last = len(steps) - 1
        chosen = {round(index * last / (MOST_COLUMNS - 1)) for index in range(MOST_COLUMNS)}
        steps = [steps[index] for index in sorted(chosen)]
    return {step: found[step] for step in steps}


def _prompts(run: Path, steps: dict[int, dict[int, str]]) -> dict[int, tuple[str, str]]:
    """Number of the prompt -> (prompt, seed), as the pictures themselves say."""
    prompts: dict[int, tuple[str, str]] = {}
    for names in steps.values():
        for number, name in names.items():
            if number not in prompts:
                try:
                    text = read_infotext(run / name)
                except DataError:
                    continue
                if text is not None:
                    prompts[number] = (text.prompt, text.settings.get("Seed", ""))
    return prompts


def _pairs(
    steps: dict[int, dict[int, str]], shown: dict[str, Shown], prompts: dict[int, tuple[str, str]]
) -> tuple[Pair, ...]:
    if 0 not in steps or len(steps) < 2:
        return ()
    first, last = steps[0], steps[max(steps)]
    return tuple(
        Pair(prompts.get(number, ("", ""))[0], "", shown[first[number]], shown[last[number]])
        for number in sorted(first.keys() & last.keys())
        if first[number] in shown and last[number] in shown
    )


def _grids(
    steps: dict[int, dict[int, str]],
    shown: dict[str, Shown],
    prompts: dict[int, tuple[str, str]],
    words: Words,
) -> tuple[Grid, ...]:
    """One grid: a row for each prompt, a column for each step."""
    if not shown or steps.keys() == {0}:
        return ()
    if len(steps) == 2 and 0 in steps:
        # The pairs above show the same.
        return ()
    columns = tuple(
        Column(words("step", step=step) if step else words("base")) for step in sorted(steps)
    )
    rows = tuple(
        Row(
            prompts.get(number, ("", ""))[0],
            tuple(shown.get(steps[step].get(number, "")) for step in sorted(steps)),
        )
        for number in sorted({number for names in steps.values() for number in names})
    )
    return (Grid("", "", columns, rows, has_base=0 in steps),)


def _learned_from(run: Path) -> tuple[list[Shown], int]:
    """The first training pictures, and how many there are."""
    locators: list[str] = []
    count = 0
    path = run / "manifest.jsonl"
    try:
        check_regular(path, "manifest")
        with path.open("rb") as lines:
            while line := lines.readline(_LARGEST_LINE):
                locator = _trained_locator(line)
                count += bool(locator)
                if locator and len(locators) < MOST_LEARNED:
                    locators.append(locator)
    except (FileFormatError, OSError):
        return [], 0
    shown = embedded(locators, beside=run, budget=LEARNED_BUDGET, largest=256)
    return [replace(shown[name], file="") for name in locators if name in shown], count


def _trained_locator(line: bytes) -> str:
    try:
        entry = parse_json(line)
    except ValueError:
        return ""
    if not isinstance(entry, dict) or entry.get("role") != "train":
        return ""
    locator = entry.get("locator")
    return locator if isinstance(locator, str) else ""


def _lead(recipe: Recipe | None, diary: Diary, images: int, words: Words) -> str:
    if not diary.steps:
        return ""
    steps, time = diary.steps[-1], words.time(diary.seconds)
    if recipe is None or not images:
        return words("lead_unknown", steps=steps, time=time)
    return words(
        "lead_run",
        method=method_title(recipe.method),
        pictures=words.counted("pictures", images),
        steps=steps,
        time=time,
        base=recipe.base,
    )


def _commands(
    run: Path,
    recipe: Recipe | None,
    prompts: dict[int, tuple[str, str]],
    diary: Diary,
    words: Words,
) -> tuple[Command, ...]:
    if recipe is None:
        return ()
    commands = []
    result = result_of(run, recipe)
    if result is not None:
        prompt = next((text for text, _ in (prompts.get(n, ("", "")) for n in sorted(prompts))), "")
        line = ["konomi", "generate", prompt or "a house by a lake"]
        if is_model(result):
            line += ["--base", str(result)]
        else:
            line += ["--base", recipe.base]
            for file in (*recipe.adapters, str(result)):
                line += ["--add", file]
        commands.append(Command(words("draw"), shlex.join(line)))
    if diary.steps and (run / "checkpoints").is_dir():
        longer = ["konomi", "resume", str(run), "--steps", str(2 * diary.steps[-1])]
        commands.append(Command(words("go_on"), shlex.join(longer)))
    return tuple(commands)


def _changed(recipe: Recipe) -> list[Fact]:
    return [Fact(path, written(value)) for path, value in changed_settings(recipe)]


def _flat(data: Any, prefix: str = "") -> list[Fact]:
    """Every setting of a recipe's data, by its dotted name."""
    facts: list[Fact] = []
    items: Sequence[tuple[object, Any]]
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data))
    for name, value in items:
        path = f"{prefix}{name}"
        if isinstance(value, dict) or (
            isinstance(value, list | tuple) and value and isinstance(value[0], dict)
        ):
            facts += _flat(value, f"{path}.")
        else:
            facts.append(Fact(path, written(tuple(value) if isinstance(value, list) else value)))
    return facts


def _facts(run: Path, recipe: Recipe | None, diary: Diary, words: Words) -> list[Fact]:
    facts = []
    if recipe is not None:
        facts += [
            Fact(words("fact_base"), recipe.base),
            Fact(words("fact_method"), method_title(recipe.method)),
        ]
        triggers = dict.fromkeys(one.trigger for one in recipe.data.sources if one.trigger)
        if triggers:
            facts.append(Fact(words("fact_trigger"), ", ".join(triggers)))
        if (result := result_of(run, recipe)) is not None and result.is_file():
            size = result.stat().st_size / 2**20
            facts.append(Fact(words("fact_result"), f"{result.name}, {size:.1f} MiB"))
    if diary.steps:
        each = diary.seconds / len(diary.steps)
        facts += [
            Fact(words("fact_steps"), str(diary.steps[-1])),
            Fact(words("fact_time"), words.time(diary.seconds)),
            Fact(words("fact_speed"), words("per_step", seconds=f"{each:.2g}")),
        ]
    if len(set(diary.rates)) == 1:
        facts.append(Fact(words("rate"), f"{diary.rates[0]:g}"))
    if diary.memory:
        facts.append(Fact(words("fact_memory"), f"{diary.memory / 1024:.1f} GiB"))
    return facts

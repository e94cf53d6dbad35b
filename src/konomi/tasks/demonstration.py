"""`demo`: the whole way on the built-in base and pictures, ending with a page to look at."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from konomi.adapters.apply import Strengths, attach
from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, RunConfig, SourceConfig
from konomi.errors import RunError
from konomi.evaluation.change import (
    Finding,
    class_finding,
    subject_finding,
    subject_rise,
    unrelated_finding,
)
from konomi.evaluation.report import Grid, Report, Row, write_report
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import count_on
from konomi.generation.generate import generate as draw
from konomi.generation.request import Request
from konomi.methods.pivotal import PivotalConfig
from konomi.models.base import BaseModel
from konomi.models.clip import load_clip
from konomi.tasks.generating import load_base
from konomi.tasks.training import train
from konomi.training.events import Event, Finished, Prepared, Step, Warned

MASCOT = Path(__file__).parent.parent / "builtin" / "mascot"
TRIGGER, NOUN = "sks", "creature"
PANEL = (
    (f"a {TRIGGER} {NOUN}", "the trigger word"),
    (f"a {TRIGGER} {NOUN} on a blue background", "the trigger in a new place"),
    (f"a {NOUN}", "only the class: should change little"),
    ("a fox on a green background", "something unrelated: should not change"),
)
NUM_SUBJECT_ROWS = 2
"""How many rows of `PANEL` name the subject; the next one is the class, the last is unrelated."""
PICTURES_EACH = 3
SEED, GUIDANCE = 7, 4.0

Rows = list[tuple[Image.Image, ...]]


@dataclass(slots=True)
class _Run:
    """What the training told, for the page."""

    losses: list[float]
    seconds: float = 0.0


def demo_recipe(output: Path, steps: int) -> Recipe:
    """A word and a LoRA around it, on five pictures of the mascot.

    Measured beside a LoRA alone: what the word takes on, the class and everything else need not
    carry (docs/notes.md).
    """
    return Recipe(
        base="tiny",
        method=PivotalConfig(),
        data=DataConfig(
            sources=(SourceConfig(path=str(MASCOT), trigger=TRIGGER, class_noun=NOUN),)
        ),
        run=RunConfig(
            output=str(output), name="mascot", steps=steps, checkpoint_every=0, preview_every=0
        ),
    )


def demo(output: Path, *, steps: int = 300) -> Iterator[Event]:
    """Train a word and a LoRA on the mascot, draw the same seeds before and after, write
    `report.html`.

    output: the folder, new, empty or of an earlier demo.
    steps: optimiser steps of the training.

    The last event is `Finished` with the report's path. Raises RunError if the folder holds
    something else.
    """
    if output.exists() and any(output.iterdir()) and not (output / "recipe.toml").exists():
        raise RunError(
            f"{output}: is not empty and not an earlier demo. Name another folder with --output."
        )
    run = _Run([])
    result = ""
    for event in train(demo_recipe(output, steps), overwrite=True):
        if isinstance(event, Step):
            run.losses.append(event.loss)
            run.seconds += event.seconds
        if isinstance(event, Finished):
            if event.interrupted:
                yield event
                return
            result = event.path
            continue
        yield event
    base = load_base("tiny", device="cpu")
    adapter = read_adapter(result)
    total = 2 * len(PANEL) * PICTURES_EACH
    columns: list[Rows] = []
    for strength in (0.0, 1.0):
        column: Rows = []
        with attach(base, [(adapter, Strengths(strength, strength))]):
            for index, (prompt, _) in enumerate(PANEL):
                yield Prepared(
                    "pictures",
                    len(columns) * len(PANEL) * PICTURES_EACH + index * PICTURES_EACH,
                    total,
                )
                column.append(_pictures(base, prompt))
        columns.append(column)
    yield Prepared("pictures", total, total)
    findings = findings_of(columns[0], columns[1])
    for finding in findings:
        yield Warned(finding.text)
    page = output / "report.html"
    write_report(_report(columns, findings, run, Path(result), base), page)
    yield Finished(len(run.losses), str(page))


def findings_of(before: Rows, after: Rows) -> tuple[Finding, ...]:
    """What a person should see on the pictures of `PANEL`, measured with the CLIP inside konomi."""
    clip = load_clip("tiny")
    subject_ND = clip.image_features([Image.open(path) for path in sorted(MASCOT.glob("*.png"))])
    old, new = ([clip.image_features(row) for row in rows] for rows in (before, after))
    named = slice(NUM_SUBJECT_ROWS)
    rise = subject_rise(old[named], new[named], subject_ND)
    return (
        subject_finding("The mascot", old[named], new[named], subject_ND),
        class_finding(
            f"a {NOUN}", old[NUM_SUBJECT_ROWS], new[NUM_SUBJECT_ROWS], subject_ND, rise=rise
        ),
        unrelated_finding("The fox", old[-1], new[-1]),
    )


def _pictures(base: BaseModel, prompt: str) -> tuple[Image.Image, ...]:
    request = Request(prompt=prompt, seed=SEED, steps=25, guidance=GUIDANCE)
    return tuple(
        picture.image
        for picture in draw(base, count_on(request, PICTURES_EACH), batch=PICTURES_EACH)
    )


def _report(
    columns: list[Rows], findings: tuple[Finding, ...], run: _Run, result: Path, base: BaseModel
) -> Report:
    rows = tuple(
        Row(prompt, note, (columns[0][index], columns[1][index]))
        for index, (prompt, note) in enumerate(PANEL)
    )
    samples = tuple(
        Image.open(path).convert("RGB").resize((136, 136)) for path in sorted(MASCOT.glob("*.png"))
    )
    prompt = f"a {TRIGGER} {NOUN} on a red background"
    return Report(
        title="konomi: a mascot learned from five pictures",
        summary=(
            f"A word and a LoRA around it were trained on the pictures below in {len(run.losses)} "
            f"steps ({run.seconds:.0f} s). Each row shows the same prompt and seeds, drawn by the "
            "base and by the base with what was learned."
        ),
        findings=findings,
        method=(
            "Similarity is the cosine of picture features of the CLIP inside konomi; 1 is the same "
            "picture. The base is small, and its pictures are coarse: it is here to show the way, "
            "not to make art."
        ),
        samples=samples,
        grids=(Grid("Before and after", ("base", "trained"), rows),),
        losses=tuple(run.losses),
        facts=(
            ("base", f"{base.name} ({base.family})"),
            (
                "method",
                (
                    "pivotal tuning with its defaults: first a new word, then a LoRA that knows "
                    "it, in one file"
                ),
            ),
            ("result", f"{result.name}, {result.stat().st_size / 2**20:.1f} MiB, kohya format"),
        ),
        next_steps=(
            (
                "Draw with it:",
                (
                    f"konomi generate {shlex.quote(prompt)} --base tiny --add "
                    f"{shlex.quote(str(result))}"
                ),
            ),
            (
                "Look at your own pictures:",
                "konomi check --images photos --base MODEL.safetensors --trigger sks",
            ),
            (
                "Train on them:",
                (
                    "konomi train lora --images photos --base MODEL.safetensors --trigger sks "
                    "--class dog"
                ),
            ),
        ),
    )

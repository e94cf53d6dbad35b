"""`demo`: a small bake-off on the built-in base and pictures. Three methods learn the mascot in
equally many steps, are measured beside the base, and one of them is named as the one to keep.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from konomi.config.evaluation import EvaluationConfig
from konomi.config.recipe import MethodConfig, Recipe
from konomi.config.sections import DataConfig, RunConfig, SourceConfig
from konomi.errors import KonomiError, RunError
from konomi.evaluation.candidates import SavedFile
from konomi.evaluation.page.run_files import result_of
from konomi.methods.hypernetwork import HypernetworkConfig
from konomi.methods.lora import LoraConfig
from konomi.methods.pivotal import PivotalConfig
from konomi.tasks.evaluating import evaluate_files
from konomi.tasks.evaluation_setup import files_of_run, setup_of_runs
from konomi.tasks.run_folder import recipe_of_run
from konomi.tasks.training import resume, train
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.events import Event, Finished, Started, Warned

MASCOT = Path(__file__).parent.parent / "builtin" / "mascot"
TRIGGER, NOUN = "sks", "creature"
STEPS = 300
METHODS: tuple[tuple[MethodConfig, str], ...] = (
    (LoraConfig(), "LoRA"),
    (HypernetworkConfig(), "hypernetwork"),
    (PivotalConfig(), "pivotal tuning"),
)
"""The first two have to put the subject into the class word, and take the class along; the third
has a token for it (docs/methods/README.md)."""
EVALUATION = EvaluationConfig(
    prompts=(
        "a {}",
        "a {} on a blue background",
        "a {} on a yellow background",
        f"a {NOUN}",
        f"a {NOUN} on a red background",
        "a fox on a green background",
        "a house on a blue background",
    ),
    seeds=3,
    seed=8,
    guidance=4.0,
)


def demo_recipe(method: MethodConfig, output: Path, steps: int) -> Recipe:
    """One method on the five pictures of the mascot, with its defaults."""
    source = SourceConfig(path=str(MASCOT), trigger=TRIGGER, class_noun=NOUN)
    return Recipe(
        base="tiny",
        method=method,
        data=DataConfig(sources=(source,)),
        evaluation=EVALUATION,
        run=RunConfig(
            output=str(output), name="mascot", steps=steps, checkpoint_every=0, preview_every=0
        ),
    )


def demo(output: Path, *, steps: int = STEPS) -> Iterator[Event]:
    """Train three methods on the mascot, draw and measure them beside the base, write
    `report.html`. Asked again after an interruption it goes on where it was.

    output: the folder, new, empty or of an earlier demo.
    steps: optimiser steps of each training.

    The last event is `Finished` with the page's path. Raises RunError if the folder holds something
    else.
    """
    runs = output / "runs"
    if output.exists() and any(output.iterdir()) and not runs.is_dir():
        raise RunError(
            f"{output}: is not empty and not an earlier demo. Name another folder with --output."
        )
    files: list[SavedFile] = []
    for number, (method, name) in enumerate(METHODS, 1):
        run = runs / method.kind
        recipe = demo_recipe(method, run, steps)
        for event in _trained(recipe, run):
            if isinstance(event, Finished):
                if event.interrupted:
                    yield event
                    return
                continue
            if isinstance(event, Started):
                yield Warned(f"{number} of {len(METHODS)}: {name}")
            yield event
        files += [replace(file, label=name) for file in files_of_run(run, recipe)]
    setup = setup_of_runs([runs / method.kind for method, _ in METHODS])
    setup = replace(setup, config=EVALUATION)
    yield from evaluate_files(files, setup, output, device="cpu")


def _trained(recipe: Recipe, run: Path) -> Iterator[Event]:
    """What is left to do of a run; nothing where it is done."""
    if not checkpoint_paths(run / "checkpoints") or not _is_same(recipe, run):
        yield from train(recipe, overwrite=True)
    elif result_of(run, recipe) is None:
        yield from resume(run)


def _is_same(recipe: Recipe, run: Path) -> bool:
    """Whether the run there is of this recipe, and not of a demo of other settings."""
    try:
        there = recipe_of_run(run)
    except KonomiError:
        return False
    return (there.method, there.run.steps) == (recipe.method, recipe.run.steps)

"""What is read of a run folder for its page. Nothing in it is trusted: what is missing or
unreadable counts as not there.
"""

import math
from dataclasses import dataclass
from glob import escape as glob_escape
from pathlib import Path
from typing import Any

from konomi.config.load import read_recipe
from konomi.config.recipe import Recipe
from konomi.errors import FileFormatError, KonomiError, RecipeError
from konomi.formats.recognition import recognise
from konomi.formats.source import open_source
from konomi.methods import METHODS
from konomi.storage.regular import check_regular
from konomi.training.log import NAME as LOG
from konomi.training.log import read_log

_LARGEST_RECIPE = 4 * 2**20
_SUFFIXES = (".safetensors", "", ".pt", ".bin")
"""Of results, the usual one first."""


@dataclass(frozen=True, slots=True)
class Diary:
    """The log of a run."""

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    seconds: float = 0.0
    memory: float = 0.0
    """Peak MiB."""
    validated: tuple[tuple[int, float, float], ...] = ()
    """(step, loss, the untouched base's)."""


def recipe_of(run: Path) -> Recipe | None:
    """What the run was started with; None where it does not say."""
    path = run / "recipe.toml"
    try:
        if check_regular(path, "recipe of a run") > _LARGEST_RECIPE:
            return None
        return read_recipe(path, (), tuple(method.config_type for method in METHODS))
    except (FileFormatError, RecipeError):
        return None


def read_diary(run: Path) -> Diary:
    """Steps and validations; entries that are none are left out."""
    try:
        check_regular(run / LOG, "log of a run")
        entries = read_log(run)
    except (FileFormatError, OSError):
        return Diary()
    done = [
        entry
        for entry in entries
        if "kind" not in entry and all(_is_number(entry.get(n)) for n in ("loss", "learning_rate"))
    ]
    validated = [
        entry
        for entry in entries
        if entry.get("kind") == "validation"
        and all(_is_number(entry.get(name)) for name in ("loss", "base_loss"))
    ]
    return Diary(
        steps=tuple(entry["step"] for entry in done),
        losses=tuple(entry["loss"] for entry in done),
        rates=tuple(entry["learning_rate"] for entry in done),
        seconds=sum(entry["seconds"] for entry in done if _is_number(entry.get("seconds"))),
        memory=max((e["memory"] for e in done if _is_number(e.get("memory"))), default=0.0),
        validated=tuple((one["step"], one["loss"], one["base_loss"]) for one in validated),
    )


def result_of(run: Path, recipe: Recipe) -> Path | None:
    """The finished file or folder."""
    paths = (run / f"{recipe.run.name}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def is_model(result: Path) -> bool:
    """Whether a result is a whole model, which takes the base's place."""
    try:
        return recognise(open_source(result)).kind in ("checkpoint", "model folder")
    except (KonomiError, OSError):
        return False


def saved_files(run: Path, recipe: Recipe) -> list[Path]:
    """What was saved on the way, the finished file not among them."""
    return sorted(
        path
        for path in run.glob(f"{glob_escape(recipe.run.name)}-*")
        if path.suffix in _SUFFIXES[:1]
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

"""Which runs a comparison is made of: methods and recipes, times the values of a sweep."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from konomi.config.load import change_recipe, with_absolute_paths
from konomi.config.overrides import kind_of
from konomi.config.recipe import Recipe
from konomi.config.schema import generic, recipe_settings
from konomi.config.sections import SourceConfig
from konomi.errors import RecipeError
from konomi.tasks.recipes import METHOD_CONFIGS, read_recipe, recipe_from_flags

DECIDED = ("run.steps", "run.epochs", "run.output", "run.name", "base", "data.sources.N.path")
"""Settings that a comparison itself decides, or that are the same for all candidates."""
MOST_RUNS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line of a comparison says about its runs."""

    images: tuple[Path, ...] = ()
    base: str = ""
    trigger: str = ""
    class_noun: str = ""
    prior_images: Path | None = None
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    """Settings changed for every candidate."""
    sweep: tuple[str, ...] = ()
    """`KEY=V1,V2,...`, each times all others."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One candidate as it was asked for."""

    id: str
    label: str
    changes: dict[str, str]
    recipe: Recipe


def wanted_runs(
    what: Sequence[str | Path | Recipe], asked: Asked, *, search: bool = False
) -> tuple[Wanted, ...]:
    """Every method or recipe with every combination of the sweep, in that order; for a search each
    without it.

    Raises RecipeError where a setting of the sweep is not one of every method, a candidate is named
    twice, or the candidates differ in base or pictures.
    """
    if not what:
        raise RecipeError("name the methods or recipes to compare: konomi compare lora dreambooth")
    names = [_name(word) for word in what]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RecipeError(
            f"{twice[0]}: is named twice. Each candidate is one method or recipe; several settings "
            "of one are compared with --sweep KEY=V1,V2."
        )
    recipes = [_recipe(word, asked) for word in what]
    keys = [text.partition("=")[0].strip() for text in asked.sweep]
    if len(set(keys)) < len(keys):
        raise RecipeError("--sweep: the same setting stands twice. Put all its values into one.")
    sweep = {} if search else dict(swept_values(text) for text in asked.sweep)
    for key in keys:
        _check_swept(key, names, recipes)
    runs = [
        with_changes(name, recipe, dict(zip(sweep, values, strict=True)))
        for name, recipe in zip(names, recipes, strict=True)
        for values in product(*sweep.values())
    ]
    if len(runs) > MOST_RUNS:
        raise RecipeError(
            f"--sweep: makes {len(runs)} runs; at most {MOST_RUNS} are compared. Sweep fewer "
            "values, or let --search N choose among them."
        )
    _check_alike(runs)
    return tuple(runs)


def _name(word: str | Path | Recipe) -> str:
    if isinstance(word, Recipe):
        return word.run.name or word.method.kind
    return Path(word).stem if _is_file(word) else str(word)


def _is_file(word: str | Path) -> bool:
    text = str(word)
    return isinstance(word, Path) or text.endswith((".toml", ".png")) or "/" in text or "\\" in text


def _recipe(word: str | Path | Recipe, asked: Asked) -> Recipe:
    if isinstance(word, str) and not _is_file(word):
        return _of_method(word, asked)
    changes = [f"base={asked.base}"] if asked.base else []
    changes += [] if asked.seed is None else [f"run.seed={asked.seed}"]
    changes += asked.overrides
    if isinstance(word, Recipe):
        recipe = change_recipe(word, changes)
    else:
        recipe = read_recipe(word, changes)
    return with_absolute_paths(_with_sources(recipe, asked))


def _of_method(kind: str, asked: Asked) -> Recipe:
    if not asked.images:
        raise RecipeError("--images: must be set: the folder of pictures that all methods learn.")
    if not asked.base:
        raise RecipeError(
            "--base: must be set: tiny (built in), a folder, a .safetensors or .ckpt file, or a "
            "hub id."
        )
    recipe = recipe_from_flags(
        kind,
        images=asked.images,
        base=asked.base,
        trigger=asked.trigger,
        class_noun=asked.class_noun,
        seed=asked.seed,
        prior_images=asked.prior_images,
        overrides=asked.overrides,
    )
    return with_absolute_paths(recipe)


def _with_sources(recipe: Recipe, asked: Asked) -> Recipe:
    """A recipe with the pictures and words of the command line in place of its own."""
    old = recipe.data.sources
    if asked.images:
        first = next((source for source in old if source.role == "train"), SourceConfig(path=""))
        kept = tuple(source for source in old if source.role == "prior")
        old = (*(replace(first, path=str(path)) for path in asked.images), *kept)
    if asked.prior_images is not None:
        prior = SourceConfig(path=str(asked.prior_images), role="prior")
        old = (*(source for source in old if source.role == "train"), prior)
    sources = tuple(
        replace(
            source,
            trigger=asked.trigger or source.trigger,
            class_noun=asked.class_noun or source.class_noun,
        )
        if source.role == "train"
        else source
        for source in old
    )
    return replace(recipe, data=replace(recipe.data, sources=sources))


def swept_values(text: str) -> tuple[str, tuple[str, ...]]:
    """`KEY=V1,V2` as the setting and its values. Raises RecipeError."""
    key, equals, values = text.partition("=")
    found = tuple(value.strip() for value in values.split(";" if ";" in values else ","))
    if not equals or not key.strip() or not all(found):
        raise RecipeError(
            f"--sweep is {text!r}; it takes KEY=V1,V2, for example method.rank=4,16 (values that "
            "are lists: KEY=A,B;C,D)."
        )
    if len(set(found)) < len(found):
        raise RecipeError(f"--sweep is {text!r}; a value stands twice.")
    return key.strip(), found


def _check_swept(key: str, names: Sequence[str], recipes: Sequence[Recipe]) -> None:
    if generic(key) in DECIDED:
        raise RecipeError(
            f"--sweep {key}: is the same for all candidates, or decided by --budget and --output."
        )
    for name, recipe in zip(names, recipes, strict=True):
        known = {setting.path for setting in recipe_settings(type(recipe.method))}
        if generic(key) not in known:
            kinds = [
                kind_of(config)
                for config in METHOD_CONFIGS
                if generic(key) in {setting.path for setting in recipe_settings(config)}
            ]
            have = f" It is a setting of {', '.join(kinds)}." if kinds else ""
            raise RecipeError(f"--sweep {key}: {name} has no such setting.{have}")


def with_changes(name: str, recipe: Recipe, changes: dict[str, str]) -> Wanted:
    """A candidate with what a sweep sets. Raises RecipeError."""
    changed = change_recipe(recipe, [f"{key}={value}" for key, value in changes.items()])
    words = [f"{key.rpartition('.')[2]}-{value}" for key, value in changes.items()]
    identity = re.sub(r"[^\w.-]+", "_", "-".join([name, *words]))[:100]
    label = ", ".join([name, *(f"{key}={value}" for key, value in changes.items())])
    return Wanted(identity, label, changes, changed)


def _check_alike(runs: Sequence[Wanted]) -> None:
    """Raises RecipeError where what is compared would not be the candidates."""
    ids = Counter(run.id for run in runs)
    if twice := [identity for identity, count in ids.items() if count > 1]:
        raise RecipeError(f"{twice[0]}: two candidates come out with this name. Rename a recipe.")
    first = runs[0]
    for run in runs[1:]:
        if run.recipe.base != first.recipe.base:
            raise RecipeError(
                f"{run.id} trains {run.recipe.base!r} and {first.id} {first.recipe.base!r}: "
                "candidates are compared on one base. Name it with --base."
            )
        if _pictures(run.recipe) != _pictures(first.recipe):
            raise RecipeError(
                f"{run.id} and {first.id} learn other pictures: candidates are compared on the "
                "same ones. Name them with --images."
            )
    if not _pictures(first.recipe):
        raise RecipeError(f"{first.id}: has no pictures to learn. Name their folder with --images.")


def _pictures(recipe: Recipe) -> list[str]:
    return sorted(source.path for source in recipe.data.sources if source.role == "train")

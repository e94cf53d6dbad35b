"""Recipes of merges: `[[merge]]` steps in a TOML file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from konomi.config.bounds import STRICT
from konomi.config.load import read_toml
from konomi.config.problems import adapter_of, problem_lines
from konomi.config.schema import flatten
from konomi.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeStep:
    """One merge of several models."""

    __pydantic_config__ = STRICT

    models: tuple[str, ...]
    """Files, diffusers folders, `tiny`, hub ids, or names of earlier steps."""
    name: str = ""
    """What later steps call the result; the last step needs none."""
    how: str = "weighted_sum"
    """The way, as `--how` of `konomi merge models`."""
    alpha: float | None = None
    """Weight of what is added or mixed in; by default what is usual for the way."""
    beta: float | None = None
    """Second weight, of triple_sum and della."""
    density: float | None = None
    """Share of a difference that is kept, of ties, dare and della."""
    seed: int = 0
    """Of what dare and della draw."""
    blocks: str = ""
    """Alpha by block: `IN00:0,OUT11:1`, a number for each, or the name of a preset."""
    base_alpha: float | None = None
    """Alpha of the text encoders."""
    rules: tuple[str, ...] = ()
    """`PATTERN:WEIGHT`, alpha of the tensors with such names; the last that fits decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRecipe:
    """Merges one after the other; the last one's result is written."""

    __pydantic_config__ = STRICT

    merge: tuple[MergeStep, ...]
    """The steps."""
    precision: str | None = None
    """Number format of the result (fp32, fp16, bf16); by default that of the first model. Between
    steps it is always fp32."""
    vae: str | None = None
    """Where the VAE is taken from; by default the first model's is kept."""
    merge_vae: bool = False
    """Merge the VAEs too."""
    prediction: str | None = None
    """What the result predicts, needed where the models do not agree."""


def read_merge_recipe(path: Path) -> MergeRecipe:
    """From a TOML file, in which relative paths start at its folder. Raises RecipeError with one
    line for each problem.
    """
    if not path.exists():
        raise RecipeError(f"{path}: no such file.")
    data = read_toml(path)
    if not data.get("merge"):  # Missing, or an empty list.
        raise RecipeError(
            f'{path}: has no [[merge]]. A step is [[merge]] and models = ["a.safetensors", '
            '"b.safetensors"].'
        )
    try:
        recipe: MergeRecipe = adapter_of(MergeRecipe).validate_json(
            json.dumps(_from(data, path.parent), default=str), strict=True
        )
    except ValidationError as error:
        found = problem_lines(error.errors(include_url=False), "", flatten(MergeRecipe))
        raise RecipeError(*(f"{path}: {line}" for line in found)) from error
    _check_names(recipe, path)
    return recipe


def _from(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    result = dict(data)
    if isinstance(result.get("vae"), str):
        result["vae"] = _placed(result["vae"], folder)
    steps = result["merge"]
    if isinstance(steps, list):
        names = {step.get("name") for step in steps if isinstance(step, dict)}
        result["merge"] = [
            {**step, "models": [_placed(one, folder, names) for one in step["models"]]}
            if isinstance(step, dict) and isinstance(step.get("models"), list)
            else step
            for step in steps
        ]
    return result


def _placed(model: Any, folder: Path, names: set[Any] | None = None) -> Any:
    """A model's path from where the program stands; names of steps, hub ids and `tiny` stay."""
    if not isinstance(model, str) or not model or (names and model in names) or "\0" in model:
        return model
    there = folder / model
    return str(there) if there.exists() else model


def _check_names(recipe: MergeRecipe, path: Path) -> None:
    known: list[str] = []
    used: set[str] = set()
    later = {step.name for step in recipe.merge}
    for number, step in enumerate(recipe.merge):
        for model in step.models:
            if model in later and model not in known:
                raise RecipeError(
                    f"{path}: merge.{number}.models: {model!r} is a step that comes later, or this "
                    "one itself. A step takes the results of earlier ones."
                )
            used.add(model)
        last = number == len(recipe.merge) - 1
        if not step.name and not last:
            raise RecipeError(
                f"{path}: merge.{number}.name is missing: what do later steps call its result?"
            )
        if step.name and step.name in known:
            raise RecipeError(f"{path}: merge.{number}.name: {step.name!r} stands twice.")
        known += [step.name] if step.name else []
    idle = [step.name for step in recipe.merge[:-1] if step.name not in used]
    if idle:
        raise RecipeError(
            f"{path}: no later step takes the result of {idle[0]!r}. Name it in models, or leave "
            "the step out."
        )

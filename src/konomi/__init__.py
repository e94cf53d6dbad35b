"""konomi (好み): tune a text-to-image diffusion model to your own taste.

    recipe = konomi.recipe_from_flags(
        "lora", images=["photos"], base="tiny", trigger="sks", class_noun="dog"
    )
    for event in konomi.train(recipe):
        print(event)

Every verb of the command line is here under the same name. Nothing heavy is imported before it is
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For type checkers alone; a test holds that these are the names below.
    from konomi.config.recipe import Recipe as Recipe
    from konomi.errors import KonomiError as KonomiError
    from konomi.tasks import bake as bake
    from konomi.tasks import benchmark_dreambooth as benchmark_dreambooth
    from konomi.tasks import branch as branch
    from konomi.tasks import check as check
    from konomi.tasks import collect as collect
    from konomi.tasks import compare as compare
    from konomi.tasks import convert as convert
    from konomi.tasks import demo as demo
    from konomi.tasks import doctor as doctor
    from konomi.tasks import evaluate as evaluate
    from konomi.tasks import extract as extract
    from konomi.tasks import generate as generate
    from konomi.tasks import grid as grid
    from konomi.tasks import identifiers as identifiers
    from konomi.tasks import inspect as inspect
    from konomi.tasks import learn_start as learn_start
    from konomi.tasks import load_base as load_base
    from konomi.tasks import merge_adapters as merge_adapters
    from konomi.tasks import merge_custom as merge_custom
    from konomi.tasks import merge_models as merge_models
    from konomi.tasks import merge_recipe as merge_recipe
    from konomi.tasks import merge_saves as merge_saves
    from konomi.tasks import new_recipe as new_recipe
    from konomi.tasks import read_recipe as read_recipe
    from konomi.tasks import recipe_from_card as recipe_from_card
    from konomi.tasks import recipe_from_flags as recipe_from_flags
    from konomi.tasks import recipe_of_card as recipe_of_card
    from konomi.tasks import report as report
    from konomi.tasks import resize as resize
    from konomi.tasks import resume as resume
    from konomi.tasks import slim as slim
    from konomi.tasks import split as split
    from konomi.tasks import train as train
    from konomi.tasks import train_aesthetic as train_aesthetic
    from konomi.tasks import where_it_works as where_it_works
    from konomi.training.stop import Stop as Stop

__version__ = "0.1.0"

_BESIDE_VERBS = {"KonomiError": "errors", "Recipe": "config.recipe", "Stop": "training.stop"}


def __getattr__(name: str) -> Any:
    if name in _BESIDE_VERBS:
        return getattr(import_module(f"{__name__}.{_BESIDE_VERBS[name]}"), name)
    if name.startswith("_") or name not in import_module(f"{__name__}.tasks").VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.tasks"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_BESIDE_VERBS, *import_module(f"{__name__}.tasks").VERBS))

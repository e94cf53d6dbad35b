"""konomi (好み): tune a text-to-image diffusion model to your own taste.

    recipe = konomi.recipe_from_flags("lora", images=["photos"], base="tiny", trigger="sks", class_noun="dog")
    for event in konomi.train(recipe):
        print(event)

Every verb of the command line is here under the same name. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from konomi.config.recipe import Recipe
    from konomi.errors import KonomiError
    from konomi.tasks import check, convert, demo, doctor, generate, identifiers, inspect, load_base, resume, train
    from konomi.tasks.recipes import new_recipe, read_recipe, recipe_from_flags
    from konomi.training.stop import Stop

__version__ = "0.1.0"

_HOME = {
    "Recipe": "config.recipe",
    "KonomiError": "errors",
    **dict.fromkeys(
        (
            "check",
            "convert",
            "demo",
            "doctor",
            "generate",
            "identifiers",
            "inspect",
            "load_base",
            "merge_custom",
            "resume",
            "train",
        ),
        "tasks",
    ),
    "Stop": "training.stop",
    **dict.fromkeys(("new_recipe", "read_recipe", "recipe_from_flags"), "tasks.recipes"),
}

__all__ = [
    "KonomiError",
    "Recipe",
    "Stop",
    "check",
    "convert",
    "demo",
    "doctor",
    "generate",
    "identifiers",
    "inspect",
    "load_base",
    "merge_custom",
    "new_recipe",
    "read_recipe",
    "recipe_from_flags",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

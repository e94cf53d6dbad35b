"""The verbs. Each is a function that both the command line and Python programs call; each imports
what it needs only when it is asked for, so that `konomi inspect` does not wait for the training
code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For type checkers alone; a test holds that these are the names of VERBS.
    from konomi.tasks.aesthetic_training import train_aesthetic as train_aesthetic
    from konomi.tasks.baking import Rewritten as Rewritten
    from konomi.tasks.baking import bake as bake
    from konomi.tasks.baking import slim as slim
    from konomi.tasks.benchmarking import benchmark_dreambooth as benchmark_dreambooth
    from konomi.tasks.checking import CheckReport as CheckReport
    from konomi.tasks.checking import CheckRow as CheckRow
    from konomi.tasks.checking import check as check
    from konomi.tasks.collecting import collect as collect
    from konomi.tasks.comparing import compare as compare
    from konomi.tasks.demonstration import demo as demo
    from konomi.tasks.evaluating import evaluate as evaluate
    from konomi.tasks.extracting import Extraction as Extraction
    from konomi.tasks.extracting import extract as extract
    from konomi.tasks.files import convert as convert
    from konomi.tasks.files import inspect as inspect
    from konomi.tasks.files import where_it_works as where_it_works
    from konomi.tasks.generating import generate as generate
    from konomi.tasks.generating import load_base as load_base
    from konomi.tasks.gridding import grid as grid
    from konomi.tasks.identifying import Identifier as Identifier
    from konomi.tasks.identifying import identifiers as identifiers
    from konomi.tasks.learning_start import StartLearned as StartLearned
    from konomi.tasks.learning_start import learn_start as learn_start
    from konomi.tasks.machine import DoctorReport as DoctorReport
    from konomi.tasks.machine import DoctorRow as DoctorRow
    from konomi.tasks.machine import doctor as doctor
    from konomi.tasks.merging import CustomMerge as CustomMerge
    from konomi.tasks.merging import merge_custom as merge_custom
    from konomi.tasks.merging_adapters import AdapterMerge as AdapterMerge
    from konomi.tasks.merging_adapters import merge_adapters as merge_adapters
    from konomi.tasks.merging_adapters import resize as resize
    from konomi.tasks.merging_models import ModelMerge as ModelMerge
    from konomi.tasks.merging_models import merge_models as merge_models
    from konomi.tasks.merging_models import merge_recipe as merge_recipe
    from konomi.tasks.merging_saves import SavesMerge as SavesMerge
    from konomi.tasks.merging_saves import merge_saves as merge_saves
    from konomi.tasks.recipes import new_recipe as new_recipe
    from konomi.tasks.recipes import read_recipe as read_recipe
    from konomi.tasks.recipes import recipe_from_card as recipe_from_card
    from konomi.tasks.recipes import recipe_from_flags as recipe_from_flags
    from konomi.tasks.recipes import recipe_of_card as recipe_of_card
    from konomi.tasks.reporting import report as report
    from konomi.tasks.splitting import Split as Split
    from konomi.tasks.splitting import split as split
    from konomi.tasks.training import branch as branch
    from konomi.tasks.training import resume as resume
    from konomi.tasks.training import train as train

VERBS = {
    "branch": "training",
    "benchmark_dreambooth": "benchmarking",
    "bake": "baking",
    "check": "checking",
    "collect": "collecting",
    "compare": "comparing",
    "convert": "files",
    "demo": "demonstration",
    "doctor": "machine",
    "evaluate": "evaluating",
    "extract": "extracting",
    "generate": "generating",
    "grid": "gridding",
    "identifiers": "identifying",
    "inspect": "files",
    "learn_start": "learning_start",
    "load_base": "generating",
    "merge_adapters": "merging_adapters",
    "merge_custom": "merging",
    "merge_models": "merging_models",
    "merge_recipe": "merging_models",
    "merge_saves": "merging_saves",
    "new_recipe": "recipes",
    "read_recipe": "recipes",
    "recipe_from_card": "recipes",
    "recipe_from_flags": "recipes",
    "recipe_of_card": "recipes",
    "report": "reporting",
    "resize": "merging_adapters",
    "resume": "training",
    "slim": "baking",
    "split": "splitting",
    "train": "training",
    "train_aesthetic": "aesthetic_training",
    "where_it_works": "files",
}
"""Function -> its module here. `konomi` has the same ones."""

_ANSWERS = {
    "AdapterMerge": "merging_adapters",
    "CheckReport": "checking",
    "CheckRow": "checking",
    "CustomMerge": "merging",
    "DoctorReport": "machine",
    "DoctorRow": "machine",
    "Extraction": "extracting",
    "Identifier": "identifying",
    "ModelMerge": "merging_models",
    "Rewritten": "baking",
    "SavesMerge": "merging_saves",
    "Split": "splitting",
    "StartLearned": "learning_start",
}
"""What some of them return."""


def __getattr__(name: str) -> Any:
    home = VERBS.get(name) or _ANSWERS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)

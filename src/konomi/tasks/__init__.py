"""The verbs. Each is a function that both the command line and Python programs call; each imports what it needs only
when it is asked for, so that `konomi inspect` does not wait for the training code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from konomi.tasks.checking import CheckReport, CheckRow, check
    from konomi.tasks.demonstration import demo
    from konomi.tasks.files import convert, inspect
    from konomi.tasks.generating import generate, load_base
    from konomi.tasks.identifying import Identifier, identifiers
    from konomi.tasks.machine import DoctorReport, DoctorRow, doctor
    from konomi.tasks.merging import CustomMerge, merge_custom
    from konomi.tasks.training import resume, train

_HOME = {
    "CheckReport": "checking",
    "CheckRow": "checking",
    "check": "checking",
    "demo": "demonstration",
    "convert": "files",
    "inspect": "files",
    "where_it_works": "files",
    "generate": "generating",
    "load_base": "generating",
    "Identifier": "identifying",
    "identifiers": "identifying",
    "DoctorReport": "machine",
    "DoctorRow": "machine",
    "doctor": "machine",
    "CustomMerge": "merging",
    "merge_custom": "merging",
    "resume": "training",
    "train": "training",
}

__all__ = [
    "CheckReport",
    "CheckRow",
    "CustomMerge",
    "DoctorReport",
    "DoctorRow",
    "Identifier",
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
    "where_it_works",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

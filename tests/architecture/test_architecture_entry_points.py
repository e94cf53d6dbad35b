"""What a Python program calls: every verb of the command line listed once, each argument
explained.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest

import konomi
from konomi import tasks
from konomi.cli.main import COMMANDS

SOURCE = Path(konomi.__file__).parent
OTHER_NAMES = {"benchmark": "benchmark_dreambooth", "new": "new_recipe", "merge": "merge_custom"}
"""Commands whose function is called otherwise: what they do is more than the word says."""


def names_for_type_checkers(path):
    """What a module imports for type checkers alone."""
    (block,) = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    ]
    return {
        alias.asname
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_verbs_are_listed_once_and_type_checkers_see_the_same():
    assert names_for_type_checkers(SOURCE / "tasks" / "__init__.py") == {
        *tasks.VERBS,
        *tasks._ANSWERS,
    }
    assert names_for_type_checkers(SOURCE / "__init__.py") == {*tasks.VERBS, *konomi._BESIDE_VERBS}
    assert {*tasks.VERBS, "Recipe", "Stop", "KonomiError"} <= set(dir(konomi))
    for name in (*tasks.VERBS, *konomi._BESIDE_VERBS):
        assert callable(getattr(konomi, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        konomi.trian  # noqa: B018


def test_every_command_is_a_function():
    assert {
        OTHER_NAMES.get(name, name.replace("-", "_")) for name, _, _ in COMMANDS
    } <= tasks.VERBS.keys()


def unexplained(function):
    """Arguments without a line of their own: `name: text`, or `name, other: text`."""
    lines = re.findall(r"^ *([a-z_]+(?:, [a-z_]+)*): \S", inspect.getdoc(function) or "", re.M)
    explained = {name for line in lines for name in line.split(", ")}
    return [name for name in inspect.signature(function).parameters if name not in explained]


def test_an_argument_without_a_text_would_be_found():
    def half(one: int, other: int) -> None:
        """Nothing.

        one: explained.
        """

    assert unexplained(half) == ["other"]


@pytest.mark.parametrize("name", tasks.VERBS)
def test_every_argument_is_explained(name):
    assert unexplained(getattr(konomi, name)) == []

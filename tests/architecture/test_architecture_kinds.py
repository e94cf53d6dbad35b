"""Kinds of update are listed in one place, and nobody asks an update of which kind it is: adding
one is one file.
"""

import ast
import re
from pathlib import Path

import pytest

from konomi.adapters.kinds import KINDS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "konomi").rglob("*.py"))
KIND_NAMES = {kind.__name__ for kind in KINDS}
PLACES_THAT_LIST_KINDS = ["src/konomi/adapters/kinds/__init__.py"]


def kinds_in(node):
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} & KIND_NAMES


def lists_kinds(tree):
    """Whether two kinds or more stand in one tuple, list, set, table, union or chain of cases."""
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.BinOp | ast.Match | ast.If
        ):
            parts = {
                ast.Match: lambda n: [case.pattern for case in n.cases],
                ast.If: lambda n: [
                    n.test,
                    *(inner.test for inner in ast.walk(n) if isinstance(inner, ast.If)),
                ],
            }.get(type(node), lambda n: [n])(node)
            if len(set().union(*map(kinds_in, parts))) > 1:
                return True
    return False


def asks_kind(tree):
    """Names of the kinds that updates are compared with, by type or by the name of the class."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            found |= kinds_in(node.args[1])
        if isinstance(node, ast.MatchClass):
            found |= kinds_in(node.cls)
        if isinstance(node, ast.Compare):
            found |= set().union(*map(kinds_in, [node.left, *node.comparators]))
        if isinstance(node, ast.Constant) and node.value in KIND_NAMES:
            found.add(node.value)
    return found


OWN_PARTS = {
    kind.__name__: kind.about.parts.keys()
    - {n for other in KINDS if other is not kind for n in other.about.parts}
    for kind in KINDS
}
MARKS = {
    kind: {n.split("_")[0] + "_" if n[:4] in ("lora", "hada", "lokr") else n for n in names}
    - {"weight", "diff"}
    for kind, names in OWN_PARTS.items()
}


def parts_of_several_kinds(tree):
    """Texts, but for explanations, that name parts of two kinds or more."""
    explanations = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in explanations
        ):
            named = {
                kind
                for kind, marks in MARKS.items()
                # `boft_R` names BOFT's alone.
                if any(re.search(rf"(?<![a-z]){re.escape(m)}", node.value) for m in marks)
            }
            if len(named) > 1:
                yield node.value


def test_no_text_lists_the_parts_of_several_kinds():
    found = {
        str(p.relative_to(ROOT)): list(
            parts_of_several_kinds(ast.parse(p.read_text(encoding="utf-8")))
        )
        for p in SOURCES
    }
    assert {path: texts for path, texts in found.items() if texts} == {}
    assert list(
        parts_of_several_kinds(ast.parse("'explained lora_ hada_'\nx = 'lora_(up|down)|lokr_'"))
    ) == ["lora_(up|down)|lokr_"]


def test_one_place_lists_the_kinds_of_update():
    listing = [path for path in SOURCES if lists_kinds(ast.parse(path.read_text(encoding="utf-8")))]
    assert [str(path.relative_to(ROOT)) for path in listing] == PLACES_THAT_LIST_KINDS


def test_nobody_asks_an_update_of_which_kind_it_is():
    others = [path for path in SOURCES if path.parent.name != "kinds"]
    assert len(SOURCES) - len(others) > len(KINDS)
    asking = {path: asks_kind(ast.parse(path.read_text(encoding="utf-8"))) for path in others}
    assert {str(path.relative_to(ROOT)): kinds for path, kinds in asking.items() if kinds} == {}


@pytest.mark.parametrize(
    "text",
    [
        "a = (LowRank, Rescale)",
        "a = {LowRank: 1, Rescale: 2}",
        "def f(u: LowRank | Rescale): ...",
        "match u:\n    case LowRank(): ...\n    case Rescale(): ...",
        "if isinstance(u, LowRank): ...\nelif isinstance(u, Rescale): ...",
    ],
)
def test_every_list_would_be_found(text):
    assert lists_kinds(ast.parse(text))
    assert not lists_kinds(ast.parse(text.replace("Rescale", "LowRank")))


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(u, LowRank)",
        "type(u) is LowRank",
        "type(u).__name__ == 'LowRank'",
        "match u:\n    case LowRank(): ...",
    ],
)
def test_every_question_would_be_found(text):
    assert asks_kind(ast.parse(text)) == {"LowRank"}
    assert asks_kind(ast.parse("x = LowRank(down, up, 1.0).about.name")) == set()

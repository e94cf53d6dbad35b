"""The tree of runs: parents that are there or gone, branches beside them, files that lie."""

import json
import shutil

from konomi.evaluation.run_tree import tree
from konomi.training.parentage import Change, line_of, write_origins


def make(folder, parent=None, step=0, changed=(), steps=(100,)):
    for number in steps:
        (folder / "checkpoints" / f"step-{number:06d}").mkdir(parents=True)
    if parent is not None:
        write_origins(folder, line_of(parent, folder, step, changed))
    return folder


def shape(found):
    return [
        (n.name, None if n.parent is None else found.nodes[n.parent].name, n.at)
        for n in found.nodes
    ]


def test_parents_siblings_and_branches_of_branches(tmp_path):
    runs = tmp_path / "runs"
    first = make(runs / "first", steps=(100, 200))
    slow = Change("optimizer.learning_rate", 1e-3, 1e-4)
    second = make(runs / "second", first, 100, [slow])
    make(runs / "third", first, 50)
    fourth = make(tmp_path / "elsewhere" / "fourth", second, 90)
    make(runs / "unrelated")
    found = tree(fourth)
    expected = [
        ("first", None, 0), ("third", "first", 50), ("second", "first", 100),
        ("fourth", "second", 90),
    ]  # fmt: skip
    assert shape(found) == expected and found.branches
    assert [n.name for n in found.nodes if n.here] == ["fourth"]
    assert found.nodes[2].changed == (slow,) and found.nodes[0].last_step == 200
    # Seen from the first one, what lies in another folder is not known.
    assert [n.name for n in tree(first).nodes] == ["first", "third", "second"]

    shutil.rmtree(first)
    shutil.rmtree(second)
    found = tree(fourth)
    assert shape(found) == expected
    assert [n.there for n in found.nodes] == [False, True, False, True]


def test_a_run_alone_is_a_tree_of_one(tmp_path):
    found = tree(make(tmp_path / "alone"))
    assert shape(found) == [("alone", None, 0)] and not found.branches


def test_files_that_lie_make_no_endless_tree(tmp_path):
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    for child, parent in ((a, b), (b, a)):
        note = {"origins": [{"run": f"../{parent.name}", "step": 1, "changed": []}]}
        (child / "parent.json").write_text(json.dumps(note))
    assert {n.name for n in tree(a).nodes} == {"a", "b"}
    note = {"origins": [{"run": ".", "step": 1, "changed": []}]}
    (a / "parent.json").write_text(json.dumps(note))
    assert [n.name for n in tree(a).nodes if n.here] == ["a"]

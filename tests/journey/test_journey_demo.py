"""`konomi demo`: three methods, one suggestion, one page; it goes on where it was."""

import html
import re
from dataclasses import replace

import pytest

import konomi
from konomi.errors import RunError
from konomi.evaluation.store import read_summary
from konomi.tasks import demonstration
from konomi.training.events import Finished, Step


@pytest.fixture
def short(monkeypatch):
    monkeypatch.delenv("KONOMI_REPORT")
    few = replace(demonstration.EVALUATION, prompts=("a {}", "a creature"), seeds=1, steps=1)
    monkeypatch.setattr(demonstration, "EVALUATION", few)


@pytest.mark.slow
def test_three_methods_are_compared_and_nothing_is_done_twice(short, tmp_path):
    folder, seen = tmp_path / "demo", 0
    events = konomi.demo(folder, steps=2)
    for event in events:
        seen += isinstance(event, Step)
        if seen == 3:
            break
    # Cut off in the second run.
    events.close()
    events = list(konomi.demo(folder, steps=2))
    assert len([event for event in events if isinstance(event, Step)]) == 4
    assert events[-1] == Finished(0, str(folder / "report.html"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    summary = read_summary(folder)
    assert [one.label for one in summary.candidates[1:]] == [n for _, n in demonstration.METHODS]
    assert not [one.failure for one in summary.candidates if one.failure]
    text = html.unescape(re.sub("<[^>]*>", "", page))
    assert summary.suggestion is not None and summary.suggestion.command in text
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    again = list(konomi.demo(folder, steps=2))
    assert not [event for event in again if isinstance(event, Step)]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "novel.txt").write_text("Once upon a time")
    with pytest.raises(RunError, match="not an earlier demo"):
        next(konomi.demo(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["novel.txt"]

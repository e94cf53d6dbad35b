"""The table of an evaluation on screens of every width."""

import pytest

from konomi.cli.evaluation_view import print_summary
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.summary import Candidate, Estimate, ScorerNote, Suggestion, Summary

NAMES = ("likeness", "style_likeness", "prompt_following", "drift", "preservation", "leak",
         "diversity", "copies")  # fmt: skip


def candidate(id, **more):
    scores = {name: Estimate(0.5, 0.45, 0.55, 0.2, (0.3, 0.2, 0.4), 4) for name in NAMES}
    rest = {"label": id, "method": "lora", "file": f"{id}.safetensors", "run": "", "step": 4}
    values = rest | {"weight": 1.0, "bytes": 1, "scores": scores, "pictures": {}} | more
    return Candidate(id=id, **values)


@pytest.fixture
def summary():
    return Summary(
        base="tiny",
        prompts=(EvaluationPrompt("a sks dog", "subject", "a dog"),),
        seeds=(0,),
        references=2,
        references_held_out=False,
        encoders={"image": "tiny", "text": "tiny"},
        scorers=tuple(
            ScorerNote(name, name, "", "cosine", name not in ("drift", "leak", "copies"))
            for name in NAMES
        ),
        candidates=(
            candidate("base", method="base", file=""),
            candidate("step 400"),
            candidate("broken", scores={}, failure="its file is damaged."),
        ),
        suggestion=Suggestion("step 400", "as like", "似ている", "konomi generate 'a dog'", {}),
    )


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_lines_fit_the_screen_and_the_most_telling_scores_come_first(
    summary, monkeypatch, capsys, columns
):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("konomi.cli.evaluation_view.screen", lambda: _screen(columns))
    print_summary(summary)
    printed = capsys.readouterr().out.splitlines()
    assert "likeness ↑" in printed[0]
    assert ("drift ↓" in printed[0]) == (columns >= 60)
    assert ("preservation ↑" in printed[0]) == (columns == 200)
    assert all(len(line) <= columns for line in printed[:3])
    more = [line for line in printed if "more scores are on the page" in line]
    assert bool(more) == (columns < 200)
    text = " ".join(" ".join(printed).split())
    assert "broken was not measured" in text and "which flatters" in text
    assert printed[-1] == "konomi generate 'a dog'"


def _screen(width):
    from rich.console import Console

    return Console(width=width)

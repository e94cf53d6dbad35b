"""What was found is written whole, read back the same, and damaged files say so."""

import json

import pytest

from konomi.errors import FileFormatError, RunError
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.store import (
    Found,
    keep_found,
    kept_found,
    read_summary,
    write_scores,
    write_summary,
)
from konomi.evaluation.summary import (
    Candidate,
    Copy,
    Estimate,
    ScorerNote,
    Suggestion,
    Summary,
)

COPY = Copy("pictures/a/0-0.png", "dog/1.png", 0.9, 0.4)


@pytest.fixture
def summary():
    estimate = Estimate(0.5, 0.4, 0.6, 0.2, (0.3, 0.2, 0.4), 4)
    candidate = Candidate(
        id="lora-step2@1",
        label="step 2",
        method="lora",
        file="run/好み.safetensors",
        run="run",
        step=2,
        weight=1.0,
        bytes=10,
        scores={"likeness": estimate},
        pictures={"0-0": "pictures/a/0-0.png", "0-1": "pictures/a/0-1.png"},
        copies=(COPY,),
    )
    return Summary(
        base="tiny",
        prompts=(EvaluationPrompt("a sks dog", "subject", "a dog"),),
        seeds=(3, 4),
        references=2,
        references_held_out=True,
        encoders={"image": "tiny", "text": "tiny"},
        scorers=(ScorerNote("likeness", "Likeness", "DreamBooth", "cosine", True),),
        candidates=(candidate,),
        suggestion=Suggestion("lora-step2@1", "as like", "似ている", "konomi generate", {}),
        notes=("a note",),
    )


def test_a_summary_is_read_back_as_it_was(summary, tmp_path):
    write_summary(summary, tmp_path)
    assert read_summary(tmp_path) == summary
    assert read_summary(tmp_path / "summary.json") == summary
    assert "好み" in (tmp_path / "summary.json").read_text(encoding="utf-8")


def test_scores_are_one_object_a_picture(summary, tmp_path):
    found = {"lora-step2@1": Found({"likeness": {(0, 0): 0.25, (0, 1): 0.75}, "drift": {}})}
    write_scores(summary, found, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "candidate": "lora-step2@1",
        "prompt": "a sks dog",
        "seed": 4,
        "picture": "pictures/a/0-1.png",
        "scores": {"likeness": 0.75},
    }
    assert len(rows) == 2


def test_what_was_measured_counts_only_under_its_key(tmp_path):
    found = Found({"likeness": {(0, 1): 0.5, (1, 0): 0.25}}, (COPY,))
    keep_found(found, "one", tmp_path)
    assert kept_found("one", tmp_path) == found
    assert kept_found("two", tmp_path) is None
    assert kept_found("one", tmp_path / "nowhere") is None
    (tmp_path / "scores.json").write_text("{")
    assert kept_found("one", tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"base": 3}', "null"])
def test_a_damaged_summary_says_so_in_one_line(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(FileFormatError, match="is damaged") as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_summary_says_so(tmp_path):
    with pytest.raises(RunError, match="konomi evaluate"):
        read_summary(tmp_path)

"""The data set of the DreamBooth paper as it lies in the world, and what is made of it."""

import pytest

from konomi.errors import DataError
from konomi.evaluation.dreambooth_benchmark import (
    MethodRow,
    encoders_note,
    markdown_table,
    method_rows,
    read_benchmark,
)
from konomi.evaluation.summary import Candidate, Estimate, Summary

LIST = """Classes

subject_name,class
backpack,backpack
dog2,dog
grey_sloth_plushie,stuffed animal
../escape,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts_and_classes.txt").write_text(LIST)
    (tmp_path / "backpack").mkdir()
    (tmp_path / "dog2").mkdir()
    return tmp_path


def test_the_list_is_read_as_it_is(folder):
    found = read_benchmark(folder)
    objects = ("a {} in the jungle", "a cube shaped {}")
    assert [(one.name, one.noun, one.prompts) for one in found.subjects] == [
        ("backpack", "backpack", objects),
        ("dog2", "dog", ("a {} wearing a red hat",)),
    ]
    assert found.absent == ("grey_sloth_plushie",)


@pytest.mark.parametrize(
    "text", [None, "", "Classes\n\nsubject_name,class\nbackpack,backpack\n", LIST[60:], "\0" * 99]
)
def test_another_folder_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "prompts_and_classes.txt").write_text(text)
    with pytest.raises(DataError) as told:
        read_benchmark(tmp_path)
    assert "\n" not in str(told.value)


def candidate(run, step, likeness, following, failure=""):
    scores = {"likeness": likeness, "prompt_following": following}
    return Candidate(
        id=f"{run}-{step}", label="", method="lora", file="", run=f"x/runs/{run}", step=step,
        weight=1.0, bytes=0, failure=failure, pictures={},
        scores={k: Estimate(v, v, v, None) for k, v in scores.items()} if not failure else {},
    )  # fmt: skip


def summary(*candidates, image="", text=""):
    encoders = {"image": image, "text": text} if image else {}
    return Summary("tiny", (), (), 0, False, encoders, (), candidates, None)


def test_means_are_over_subjects_and_of_the_last_file():
    rows = method_rows(
        {
            "backpack": summary(
                candidate("lora", 5, 0.1, 0.1), candidate("lora", 9, 0.5, 0.25),
                candidate("full", 9, 0, 0, failure="no memory."),
            ),
            "dog2": summary(candidate("lora", 9, 0.7, 0.75), candidate("full", 9, 0.25, 0.5)),
        }
    )  # fmt: skip
    lora, full = rows
    assert lora == MethodRow("lora", {"DINO": 0.6, "CLIP-T": 0.5}, 2, {})
    assert full == MethodRow("full", {"DINO": 0.25, "CLIP-T": 0.5}, 1, {"backpack": "no memory."})
    table = markdown_table(rows, 2)
    assert "| lora | 0.600 |  | 0.500 | 2 of 2 |" in table
    assert "| full | 0.250 |  | 0.500 | 1 of 2 |" in table
    # Table 1 of the paper.
    assert "| DreamBooth (Stable Diffusion), paper | 0.668 | 0.803 | 0.305 | 30 of 30 |" in table
    assert table.count("\n") == 2 + 2 + 3


def test_networks_that_are_not_the_papers_are_named():
    papers = summary(
        candidate("lora", 9, 0.5, 0.25),
        image="models/dino-vits16",
        text="openai/clip-vit-base-patch32",
    )
    assert encoders_note({"dog": papers}) == ""
    (row,) = method_rows({"dog": papers})
    assert row.values == {"DINO": 0.5, "CLIP-T": 0.25}
    # One CLIP for both: what compares pictures is no DINO.
    ours = summary(candidate("lora", 9, 0.5, 0.25), image="tiny", text="tiny")
    note = encoders_note({"dog": ours})
    assert note.startswith("Measured with tiny (likeness) and tiny (prompt following): only")
    (row,) = method_rows({"dog": ours})
    assert row.values == {"CLIP-I": 0.5, "CLIP-T": 0.25}
    assert markdown_table([row], 1, note).endswith(f"| 30 of 30 |\n\n{note}\n")

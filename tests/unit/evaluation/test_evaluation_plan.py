import pytest

from konomi.errors import RunError
from konomi.evaluation.plan import Plan, PlannedRun, check_same, read_plan, write_plan

RUNS = (
    PlannedRun(
        id="lora", label="lora", method="lora", changes={}, steps=30, batch_size=2, save_every=8,
        seconds_per_step=0.1,
    ),
    PlannedRun(
        id="full", label="full", method="full", changes={"run.batch_size": "4"}, steps=15,
        batch_size=4, save_every=8, seconds_per_step=0.4,
    ),
    PlannedRun(id="bad", label="bad", method="lora", changes={}, failure="does not fit."),
)  # fmt: skip
PLAN = Plan(
    budget="steps=30", base="tiny", runs=RUNS, threads=2, notes=("one.",),
    asked={"--budget": "steps=30", "the candidates": ["lora", "full", "bad"], "a rate": 1e-4},
)  # fmt: skip


def test_a_plan_comes_back_as_it_was(tmp_path):
    assert read_plan(tmp_path) is None
    write_plan(PLAN, tmp_path)
    assert read_plan(tmp_path) == PLAN
    check_same(PLAN, {**PLAN.asked, "the candidates": ("lora", "full", "bad")}, tmp_path)


def test_what_all_runs_take():
    assert [run.images for run in PLAN.runs] == [60, 60, 0]
    assert PLAN.trainable == RUNS[:2]
    assert PLAN.seconds() == pytest.approx(9.0)
    assert PLAN.seconds(2) == PLAN.seconds(8) == pytest.approx(4.5)


def test_another_comparison_in_the_folder_is_named(tmp_path):
    asked = {"--budget": "steps=31", "the candidates": ["lora"], "a rate": 1e-4, "new": True}
    with pytest.raises(RunError) as told:
        check_same(PLAN, asked, tmp_path)
    assert '--budget was "steps=30", is "steps=31"' in str(told.value)
    assert "new was not set, is true" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"runs": 3', '{"version": 1, "runs": [{}]}'])
def test_a_damaged_plan_is_one_line(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RunError, match=r"cannot be read as the plan of a comparison"):
        read_plan(tmp_path)


def test_a_plan_of_a_later_version_is_not_read(tmp_path):
    write_plan(Plan(budget="steps=1", base="", runs=(), threads=1, asked={}, version=9), tmp_path)
    with pytest.raises(RunError, match="newer konomi"):
        read_plan(tmp_path)

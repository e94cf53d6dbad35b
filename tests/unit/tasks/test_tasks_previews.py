"""When previews are drawn by themselves, and what is said of their cost."""

import pytest

from konomi.tasks.preview_schedule import SECONDS, PreviewPlan, automatic_plan, cost_note


@pytest.mark.parametrize(
    ("each", "run", "steps"),
    [
        (1.0, 1000.0, {0, 20, 40, 60, 80, 100}),
        (SECONDS / 6, 1.0, {0, 20, 40, 60, 80, 100}),
        (SECONDS / 3, 1.0, {0, 50, 100}),
        (SECONDS / 2, 1.0, {0, 100}),
        (SECONDS, 1.0, {100}),
        (600.0, 3600.0, {100}),
        (0.0, 0.0, {0, 20, 40, 60, 80, 100}),
    ],
)
def test_previews_take_their_share_and_no_more(each, run, steps):
    plan = automatic_plan(each, run, 100)
    assert plan.steps == steps
    assert bool(plan.note) == (steps == {100})


def test_a_run_of_few_steps_draws_none_twice():
    assert automatic_plan(0.1, 10.0, 2).steps == {0, 1, 2}
    assert automatic_plan(0.1, 10.0, 1).steps == {0, 1}


def test_the_cost_is_said_with_the_times():
    note = cost_note(PreviewPlan(frozenset({0, 50, 100})), 4, 3.21, 100)
    assert "4 pictures take 3.2 s each time, at the start, after step 50 and at the end" in note
    assert "every 10 steps" in cost_note(PreviewPlan(frozenset(range(0, 101, 10))), 1, 120, 100)

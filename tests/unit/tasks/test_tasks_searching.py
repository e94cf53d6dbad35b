"""The search over a sweep, on runs that nobody trains: how good they are is a formula."""

import math

import pytest

from konomi.errors import RecipeError
from konomi.evaluation.plan import PlannedRun
from konomi.tasks.candidates import Asked, wanted_runs
from konomi.tasks.recipes import recipe_from_flags
from konomi.tasks.searching import Search, rungs_of, search_waves
from konomi.training.stop import Stop

pytest.importorskip("optuna", reason="the extra `search` is not installed")
RATES = "optimizer.learning_rate=1e-6..1e-2"


def searched(count, *, sweep=(RATES,), together=1, worth=None, stop=None, seed=3):
    """The search after `count` runs, and what was trained up to where."""
    recipe = recipe_from_flags("lora", images=["photos"], base="tiny", trigger="sks")
    (first,) = wanted_runs([recipe], Asked(sweep=tuple(sweep)), search=True)
    planned = PlannedRun(
        id="lora", label="lora", method="lora", changes={}, steps=40, batch_size=1, save_every=10
    )
    search = Search(first, planned, sweep, seed=seed)
    trained = []

    def plan(wanted):
        return PlannedRun(
            id=wanted.id, label=wanted.label, method="lora", changes=wanted.changes, steps=40,
            batch_size=1, save_every=10,
        )  # fmt: skip

    def train(runs, until):
        trained.extend((run.id, until[run.id]) for run in runs)
        yield from ()

    def measure():
        yield from ()
        return {
            (one.run.id, step): value
            for one in search.tried
            for step in rungs_of(one.run)
            if (value := (worth or near_best)(one.wanted.recipe, step)) is not None
        }

    events = search_waves(
        search, count, together=together, planned=plan, train=train, measure=measure,
        stop=stop or Stop(),
    )  # fmt: skip
    assert list(events) == []
    return search, trained


def near_best(recipe, step):
    """Best at 3e-4, and better with every step."""
    return -abs(math.log10((recipe.optimizer.learning_rate or 1e-4) / 3e-4)) + step / 100


def test_saves_are_rungs():
    run = PlannedRun(id="a", label="a", method="lora", changes={}, steps=10, save_every=3)
    assert rungs_of(run) == (3, 6, 9, 10)
    assert rungs_of(PlannedRun(id="a", label="a", method="lora", changes={}, steps=4)) == (4,)


def test_it_comes_nearer_than_chance_and_stops_what_lags_behind():
    search, trained = searched(16)
    assert len(search.tried) == 16
    errors = [near_best(one.wanted.recipe, 0) for one in search.tried]
    assert max(errors[4:]) > max(errors[:4])
    stopped = [one for one in search.tried if one.stopped]
    assert stopped and not any(one.stopped for one in search.tried[:2])
    for one in stopped:
        steps = [step for name, step in trained if name == one.run.id]
        assert steps[-1] == one.stopped < 40
    finished = [one for one in search.tried if not one.stopped]
    for one in finished:
        assert [step for name, step in trained if name == one.run.id] == [10, 20, 30, 40]


@pytest.mark.parametrize("together", [1, 3])
def test_the_same_answers_bring_the_same_questions(together):
    first, again = (searched(7, together=together) for _ in range(2))
    assert [one.run.id for one in first[0].tried] == [one.run.id for one in again[0].tried]
    assert first[1] == again[1]
    longer, _ = searched(9, together=together)
    assert [one.run.id for one in longer.tried][:6] == [one.run.id for one in first[0].tried][:6]


def test_settings_are_tried_once():
    search, _ = searched(9, sweep=("method.rank=4,8,16",))
    assert sorted(one.run.changes["method.rank"] for one in search.tried) == ["16", "4", "8"]


def test_what_failed_is_not_asked_for_again():
    search, trained = searched(6, worth=lambda recipe, step: None)
    assert len(search.tried) == 6
    assert all(step == 10 for _, step in trained)


def test_whole_numbers_stay_whole():
    search, _ = searched(5, sweep=("method.rank=2..64",))
    ranks = [one.wanted.recipe.method.rank for one in search.tried]
    assert all(2 <= rank <= 64 for rank in ranks) and len(set(ranks)) == 5


@pytest.mark.parametrize("values", ["8..2", "1..", "a..b", "1..2,3", "2..2"])
def test_a_range_that_is_none_is_one_line(values):
    with pytest.raises(RecipeError, match=r"a range is LOW\.\.HIGH"):
        searched(1, sweep=(f"method.rank={values}",))

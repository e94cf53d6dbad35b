import pytest

from konomi.errors import RecipeError
from konomi.evaluation.budget import Budget, read_budget


@pytest.mark.parametrize("text", ["steps=600", "images=2400", "minutes=1.5"])
def test_a_budget_is_read_and_written_alike(text):
    assert str(read_budget(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "600", "steps", "steps=", "steps=0", "steps=-3", "steps=1e9", "steps=2.5", "hours=2"]
    + ["minutes=nan", "minutes=inf", "steps=99999999"],
)
def test_nonsense_is_one_line(text):
    with pytest.raises(RecipeError, match=r"^--budget is [^\n]*$"):
        read_budget(text)


def test_equal_budgets_are_equal_pictures():
    steps, images = Budget("steps", 600), Budget("images", 2400)
    for batch_size in (1, 2, 3, 7, 64):
        seen = images.steps(batch_size) * batch_size
        assert 2400 <= seen < 2400 + batch_size
        seen = steps.steps(batch_size, of_first=4) * batch_size
        assert 2400 <= seen < 2400 + batch_size
    assert steps.steps(4, of_first=4) == 600
    assert Budget("images", 1).steps(8) == 1


def test_minutes_follow_a_measured_step():
    assert Budget("minutes", 10).steps(1, seconds_per_step=0.5) == 1200
    assert Budget("minutes", 1).steps(1, seconds_per_step=100.0) == 1

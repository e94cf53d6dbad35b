import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konomi.config.load import parse_recipe
from konomi.config.rates import parse_rates
from konomi.config.sections import OptimizerConfig
from konomi.errors import RecipeError
from konomi.methods.lora import LoraConfig
from konomi.methods.method import learning_rates
from konomi.training.schedules import rate_factor, warmup_steps


def test_warmup_is_steps_or_a_share():
    assert warmup_steps(OptimizerConfig(warmup=0.06), 1000) == 60
    assert warmup_steps(OptimizerConfig(warmup=25), 1000) == 25
    assert warmup_steps(OptimizerConfig(), 1000) == 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda x: 1.0),
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("cosine_restarts", lambda x: (1 + math.cos(math.pi * ((3 * x) % 1))) / 2),
        ("polynomial", lambda x: (1 - x) ** 2),
    ],
)
def test_closed_forms_after_warmup(schedule, expected):
    config = OptimizerConfig(schedule=schedule, warmup=10, cycles=3, power=2.0)
    for step in range(10, 110):
        assert rate_factor(step, 110, config) == pytest.approx(expected((step - 10) / 100))


@given(
    st.integers(1, 500),
    st.sampled_from(["constant", "linear", "cosine", "cosine_restarts", "polynomial"]),
    st.floats(0, 80),
)
def test_always_within_bounds_and_rising_in_warmup(total, schedule, warmup):
    config = OptimizerConfig(schedule=schedule, warmup=warmup)
    factors = [rate_factor(step, total, config) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[0] > 0
    rising = factors[: min(warmup_steps(config, total), total)]
    assert rising == sorted(rising)


def test_rates_by_step_as_web_uis_write_them():
    config = OptimizerConfig(rates="5e-3:200, 1e-3:1000, 1e-4")
    rate, text_rate = learning_rates(config, 1.0)
    assert (rate, text_rate) == (5e-3, 2.5e-3)
    for step, expected in [
        (0, 5e-3),
        (199, 5e-3),
        (200, 1e-3),
        (999, 1e-3),
        (1000, 1e-4),
        (10**6, 1e-4),
    ]:
        assert rate * rate_factor(step, 1500, config) == pytest.approx(expected)
    assert rate_factor(50, 100, OptimizerConfig(rates="1e-4:20")) == 1.0
    assert rate_factor(0, 100, OptimizerConfig(rates="1e-4", warmup=9)) == pytest.approx(0.1)


@given(
    st.lists(st.tuples(st.floats(1e-8, 10), st.integers(1, 300)), min_size=1, max_size=6),
    st.booleans(),
    st.integers(1, 9),
)
def test_rates_by_step_are_read_back_step_by_step(pieces, is_open, spaces):
    """Against the list that has every step's rate written out."""
    text, expected = [], []
    for rate, length in pieces:
        expected += [rate] * length
        text.append(f"{rate!r}:{len(expected)}")
    if is_open:
        text[-1] = text[-1].partition(":")[0]
    config = OptimizerConfig(rates=("," + " " * spaces).join(text))
    base, _ = learning_rates(config, 1.0)
    # The last rate holds for whatever comes after it.
    for step, rate in enumerate([*expected, pieces[-1][0]]):
        factor = rate_factor(step, 5000, config)
        assert 0 < factor <= 1
        assert base * factor == pytest.approx(rate)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("fast", "'fast' is not a learning rate from 0 to 10"),
        ("1e-3:200:5", "'1e-3:200:5' is not a learning rate"),
        ("-1:200", "'-1:200' is not a learning rate"),
        ("nan:5", "'nan:5' is not a learning rate"),
        ("20", "'20' is not a learning rate"),
        ("1e-3:200,,1e-4", "'' is not a learning rate"),
        ("1e-3, 1e-4", "'1e-3' says no step up to which it holds"),
        ("1e-3:200, 1e-4:200", "'1e-4:200' ends at step 200, not after step 200"),
        ("1e-3:0", "'1e-3:0' ends at step 0, not after step 0"),
        ("0:10, 0", "every learning rate is 0"),
    ],
)
def test_rates_that_cannot_be_read_are_told_in_one_line(rates, message):
    with pytest.raises(ValueError, match=message):
        parse_rates(rates)
    with pytest.raises(RecipeError, match=message) as told:
        parse_recipe(
            {"base": "tiny", "method": {"kind": "lora"}, "optimizer": {"rates": rates}},
            [LoraConfig],
        )
    assert str(told.value).startswith("optimizer.rates: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("other", [{"learning_rate": 1e-3}, {"schedule": "cosine"}])
def test_rates_by_step_stand_alone(other):
    with pytest.raises(
        RecipeError, match="optimizer: rates stands in place of learning_rate and schedule"
    ) as told:
        optimizer = {"rates": "1e-3"} | other
        parse_recipe(
            {"base": "tiny", "method": {"kind": "lora"}, "optimizer": optimizer}, [LoraConfig]
        )
    assert "\n" not in str(told.value)


def test_a_schedule_of_its_own_length_is_that_of_a_run_so_long_and_stays_at_its_end():
    for kind in ("cosine", "linear", "polynomial", "cosine_restarts"):
        own = OptimizerConfig(schedule=kind, warmup=0.1, schedule_steps=50, cycles=2)
        whole = OptimizerConfig(schedule=kind, warmup=0.1, cycles=2)
        for step in range(50):
            assert rate_factor(step, 400, own) == rate_factor(step, 50, whole)
        assert {rate_factor(step, 400, own) for step in range(49, 400)} == {
            rate_factor(49, 50, whole)
        }
        assert rate_factor(10, 20, own) == rate_factor(10, 50, whole)

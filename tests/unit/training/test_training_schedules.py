import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konomi.config.sections import OptimizerConfig
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

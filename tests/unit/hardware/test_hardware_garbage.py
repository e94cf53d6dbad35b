import gc

import pytest

from konomi.hardware.garbage import many_objects


def test_the_collector_is_as_before_afterwards_whatever_happens() -> None:
    with many_objects():
        with many_objects():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer work goes on"
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), many_objects():
        _ = 1 / 0
    assert gc.isenabled()

import gc

import pytest

from konomi.hardware.garbage_collection import gc_paused


def test_the_collector_is_as_before_afterwards_whatever_happens() -> None:
    with gc_paused():
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer work goes on"
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), gc_paused():
        _ = 1 / 0
    assert gc.isenabled()

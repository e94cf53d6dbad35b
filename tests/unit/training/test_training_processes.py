"""Which of several processes this is, and what is refused before they get into each other's way."""

import pytest
import torch

from konomi.errors import RunError
from konomi.tasks.preparing import _idle_notes
from konomi.training.processes import find_processes


@pytest.fixture
def two(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    asked = []

    class State:
        def __init__(self, cpu):
            asked.append(cpu)
            self.process_index, self.num_processes, self.device = (
                1,
                State.found,
                torch.device("cpu"),
            )

    State.found = 2
    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    return State, asked


def test_processes_without_cuda_meet_on_the_cpu(two):
    _, asked = two
    assert find_processes("auto").rank == 1
    assert find_processes("cpu").world == 2
    assert asked == [True, True]


def test_processes_that_do_not_find_each_other_are_refused(two):
    two[0].found = 1
    with pytest.raises(RunError, match="2 processes were started, and they do not find each other"):
        find_processes("auto")


@pytest.mark.parametrize(
    ("device", "words"), [("cuda:1", "each finds its own"), ("cuda", "0 CUDA devices")]
)
def test_devices_that_cannot_be_shared_out_are_refused(two, device, words):
    with pytest.raises(RunError, match=words):
        find_processes(device)


def test_more_processes_than_cards_are_refused(two, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(
        RunError, match="2 processes were started here, and there are 1 CUDA devices"
    ):
        find_processes("auto")


def test_idle_processes_are_told():
    assert _idle_notes(2, 2) == ()
    (note,) = _idle_notes(1, 4)
    assert "3 idle in every step" in note

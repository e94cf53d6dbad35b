"""What another length does to a run that is gone on with."""

from types import SimpleNamespace

import pytest

from konomi.methods.method import Phase
from konomi.tasks.same_run import moved_phases

WORD, LORA = Phase("word", (), print, share=0.3), Phase("lora", (), print)
FIXED = Phase("word", (), print, num_steps=5)


@pytest.mark.parametrize(
    ("phases", "at_work", "then", "said"),
    [
        (
            (WORD, LORA),
            0,
            100,
            ["the phase 'word' ends after step 60, and was to end after step 30. --keep-schedule"],
        ),
        ((WORD, LORA), 0, 200, []),
        ((WORD, LORA), 1, 100, []),
        ((FIXED, LORA), 0, 100, []),
        ((LORA,), 0, 100, []),
        ((WORD, LORA), 0, "from elsewhere", []),
    ],
)
def test_a_share_of_a_longer_run_is_more_steps(phases, at_work, then, said):
    state = SimpleNamespace(numbers={"phase": at_work, "step": 10})
    checkpoint = SimpleNamespace(run={"schedule_steps": then}, state=state)
    notes = list(moved_phases(phases, checkpoint, 200))
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))

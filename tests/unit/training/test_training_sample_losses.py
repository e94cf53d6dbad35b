"""The loss of each image: what is noted, how much of it, and that a resumed run has the same."""

from dataclasses import replace

import pytest
import torch

from konomi.data.batch import LossRecord
from konomi.errors import RunError
from konomi.training.readout import readings
from konomi.training.sample_losses import SampleLosses
from konomi.training.stop import Stop


def noting(toy, stream):
    """A toy whose loss notes that of each sample, and a stream that says which images they are."""

    def loss(batch, rng):
        ids = batch.subject.sample_ids
        noise = rng.for_samples(ids).fork("noise").normal((3,))
        each = ((toy.layer(toy.inputs[ids]) - toy.targets[ids] - 0.1 * noise) ** 2).mean(1)
        batch.subject.record.note(each, 10 * ids, None)
        return each.mean()

    iterate = stream.iterate

    def numbered(start, stop, **options):
        for passes in iterate(start, stop, **options):
            images = tuple(int(i) for batch in passes for i in batch.subject.sample_ids)
            first = 0
            numbered_passes = []
            for batch in passes:
                numbered_passes.append(replace(batch, images=images, first=first))
                first += len(batch.subject)
            yield tuple(numbered_passes)

    toy.loss, stream.iterate = loss, numbered
    return toy, stream


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_mean_of_what_is_noted_is_the_loss_of_the_step(toy_kit, accumulation):
    toy, stream = noting(toy_kit.toy(), toy_kit.stream())
    trainer = toy_kit.trainer(toy, total=6, accumulation=accumulation)
    losses = toy_kit.losses(trainer, stream)
    columns = trainer.losses.tensors()
    assert columns["step"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert columns["image"].tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert columns["timestep"].tolist() == [0, 10, 20, 30, 40, 50] * 2
    assert columns["loss"].view(6, 2).mean(1).tolist() == pytest.approx(losses, rel=1e-6)


def test_a_resumed_run_has_noted_the_same(toy_kit):
    toy, stream = noting(toy_kit.toy(), toy_kit.stream())
    whole = toy_kit.trainer(toy)
    toy_kit.losses(whole, stream)

    toy, stream = noting(toy_kit.toy(), toy_kit.stream())
    first = toy_kit.trainer(toy)
    run = first.run(stream, stop=Stop(), sync_at=lambda step: step == 5)
    for _ in range(5):
        next(run)
    state = first.state()
    toy, stream = noting(toy_kit.toy(), toy_kit.stream())
    second = toy_kit.trainer(toy)
    second.restore(state)
    toy_kit.losses(second, stream)
    expected = whole.losses.tensors()
    assert all(
        torch.equal(column, expected[name]) for name, column in second.losses.tensors().items()
    )


def test_a_pass_of_another_process_and_a_method_that_notes_nothing_leave_zeros(toy_kit):
    (batch,) = next(toy_kit.stream().iterate(0, 1))
    mine = replace(batch, images=(7, 8, 9, 10), first=2)
    noted = LossRecord(torch.tensor([0.5, 0.25]), torch.tensor([3, 4]))
    values = readings(torch.tensor(0.375), [mine], [noted], 4)
    assert values.tolist() == [0.375, 0, 0, 0.5, 0.25, 0, 0, 3, 4]
    losses = SampleLosses()
    losses.add(1, mine.images, values.tolist()[1:])
    assert losses.tensors()["image"].tolist() == [9, 10]
    assert readings(torch.tensor(1.0), [mine], [LossRecord()], 2).tolist() == [1, 0, 0, 0, 0]


def test_the_latest_sightings_are_kept_whenever_it_was_resumed():
    whole, resumed = SampleLosses(most=5), SampleLosses(most=5)
    for step in range(1, 30):
        for losses in (whole, resumed):
            losses.add(step, (1, 2), [0.5, step, 3.0, 4.0])
        if step % 3 == 0:
            resumed = SampleLosses.of(resumed.tensors(), most=5)
        assert len(whole.columns["step"]) < 12
    assert len(whole) == 5
    assert whole.tensors()["step"].tolist() == [27, 28, 28, 29, 29]
    assert all(torch.equal(a, resumed.tensors()[name]) for name, a in whole.tensors().items())


def test_losses_count_by_the_cell_that_counts():
    record, mask = LossRecord(), torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0], mask[1] = 1, 4
    distance = torch.full((2, 1, 2, 2), 0.8)
    record.note((distance * mask).flatten(1).mean(1), torch.tensor([1, 2]), mask)
    assert record.losses_B.tolist() == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize(
    "damage",
    [{"loss": None}, {"step": torch.zeros(3)}, {"image": torch.zeros(1, dtype=torch.int64)}],
)
def test_columns_that_are_no_table_are_refused(damage):
    losses = SampleLosses()
    losses.add(1, (1, 2), [0.5, 0.5, 3.0, 4.0])
    columns = {name: v for name, v in (losses.tensors() | damage).items() if v is not None}
    with pytest.raises(RunError, match="losses of single images"):
        SampleLosses.of(columns)

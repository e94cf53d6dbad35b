import copy
import math

import pytest
import torch

from konomi.diffusion.random import Rng
from konomi.errors import RunError
from konomi.training.events import Step, Warned
from konomi.training.stop import Stop

OPTIMIZERS = ["adamw", "adafactor", "lion", "prodigy", "schedule_free"]


def weights(toy):
    return {name: p.detach().clone() for name, p in toy.layer.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_equals_a_plain_loop_with_torchs_adamw_and_clipping(toy_kit):
    ours, plain = toy_kit.toy(), toy_kit.toy()
    losses = toy_kit.losses(toy_kit.trainer(ours, total=6, clip_norm=0.5), toy_kit.stream())
    optimizer = torch.optim.AdamW(plain.layer.parameters(), lr=0.05, weight_decay=0.01)
    expected = []
    for step, (batch,) in enumerate(toy_kit.stream().iterate(0, 6)):
        loss = plain.loss(batch, Rng.for_step(3, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.layer.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(ours)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("stopped_at", [1, 4, 6])
def test_resume_is_bit_exact(toy_kit, kind, stopped_at):
    options = {
        "kind": kind,
        "schedule": "cosine",
        "warmup": 2.0,
        "ema_decay": 0.9 if kind == "adamw" else 0.0,
    }
    whole = toy_kit.toy()
    expected = toy_kit.losses(toy_kit.trainer(whole, **options), toy_kit.stream())

    first = toy_kit.trainer(toy_kit.toy(), **options)
    run = first.run(toy_kit.stream(), stop=Stop(), sync_at=lambda step: step == stopped_at)
    losses = [next(run).loss for _ in range(stopped_at)]
    state = copy.deepcopy(first.state())
    run.close()

    again = toy_kit.toy()
    second = toy_kit.trainer(again, **options)
    second.restore(state)
    losses += toy_kit.losses(second, toy_kit.stream())
    assert losses == expected
    assert same(weights(again), weights(whole))
    assert second.samples_seen == 24


def test_resume_twice_and_extend(toy_kit):
    whole = toy_kit.toy()
    expected = toy_kit.losses(toy_kit.trainer(whole, total=12), toy_kit.stream())
    losses, state = [], None
    for total in (5, 8, 12):
        toy = toy_kit.toy()
        trainer = toy_kit.trainer(toy, total=total)
        if state is not None:
            trainer.restore(state)
        losses += toy_kit.losses(trainer, toy_kit.stream())
        state = copy.deepcopy(trainer.state())
    assert losses == expected
    assert same(weights(toy), weights(whole))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_gives_the_same_step(toy_kit, accumulation):
    one, many = toy_kit.toy(), toy_kit.toy()
    a = toy_kit.losses(toy_kit.trainer(one, batch_size=4), toy_kit.stream(4))
    b = toy_kit.losses(
        toy_kit.trainer(many, batch_size=4, accumulation=accumulation), toy_kit.stream(4)
    )
    assert a == pytest.approx(b, rel=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(many)[name], value, rtol=1e-4, atol=1e-5)


def test_average_follows_its_recurrence(toy_kit):
    toy = toy_kit.toy()
    trainer = toy_kit.trainer(toy, ema_decay=0.5)
    expected = {name: p.double() for name, p in weights(toy).items()}
    for count, _ in enumerate(trainer.run(toy_kit.stream(), stop=Stop())):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = {
            n: decay * e + (1 - decay) * weights(toy)[n].double() for n, e in expected.items()
        }
    trained = weights(toy)
    with trainer.weights_for_use():
        for name, value in expected.items():
            torch.testing.assert_close(weights(toy)[name].double(), value, rtol=1e-5, atol=1e-6)
    assert same(weights(toy), trained)


def test_weights_for_use_leaves_schedule_free_training_untouched(toy_kit):
    plain, watched = toy_kit.toy(), toy_kit.toy()
    expected = toy_kit.losses(toy_kit.trainer(plain, kind="schedule_free"), toy_kit.stream())
    trainer = toy_kit.trainer(watched, kind="schedule_free")
    losses = []
    for event in trainer.run(toy_kit.stream(), stop=Stop()):
        losses.append(event.loss)
        before = weights(watched)
        with trainer.weights_for_use():
            assert not same(before, weights(watched)) or event.step == 1
    assert losses == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(toy_kit, bad):
    toy = toy_kit.toy()
    trainer = toy_kit.trainer(toy)
    good = toy.loss
    calls = []

    def loss(batch, rng):
        calls.append(None)
        return good(batch, rng) * (bad if len(calls) == 4 else 1.0)

    object.__setattr__(trainer.phases[0], "loss", loss)
    seen = []
    with pytest.raises(RunError, match=r"step 4 .*0\.png, 1\.png.*learning_rate"):
        for event in trainer.run(toy_kit.stream(), stop=Stop()):
            seen.append(event)
            after_three = weights(toy)
    assert [event.step for event in seen] == [1, 2, 3]
    assert same(weights(toy), after_three)


def test_out_of_memory_halves_the_passes_and_loses_no_step(toy_kit):
    plain, poor = toy_kit.toy(), toy_kit.toy()
    expected = toy_kit.losses(toy_kit.trainer(plain, batch_size=4), toy_kit.stream(4))
    trainer = toy_kit.trainer(poor, batch_size=4)

    def loss(batch, rng):
        if len(batch.subject) > 2 and trainer.step >= 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return poor.loss(batch, rng)

    object.__setattr__(trainer.phases[0], "loss", loss)
    events = list(trainer.run(toy_kit.stream(4), stop=Stop()))
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 13))
    assert [event.loss for event in steps] == pytest.approx(expected, rel=1e-5)
    (warning,) = [event for event in events if isinstance(event, Warned)]
    assert "2 micro-batches" in warning.message


def test_out_of_memory_with_single_images_is_an_error_that_says_what_to_do(toy_kit):
    trainer = toy_kit.trainer(toy_kit.toy(), batch_size=1)

    def loss(batch, rng):
        raise torch.OutOfMemoryError("CUDA out of memory")

    object.__setattr__(trainer.phases[0], "loss", loss)
    with pytest.raises(RunError, match="gradient_checkpointing"):
        list(trainer.run(toy_kit.stream(1), stop=Stop()))


def test_stop_ends_after_the_step_at_hand(toy_kit):
    stop = Stop()
    trainer = toy_kit.trainer(toy_kit.toy())
    steps = []
    for event in trainer.run(toy_kit.stream(), stop=stop):
        steps.append(event.step)
        if event.step == 4:
            stop.request()
    # The request came while the fourth event was being looked at; one more step may already be
    # under way.
    assert steps in ([1, 2, 3, 4], [1, 2, 3, 4, 5])
    assert trainer.step == steps[-1]


def test_phases_follow_one_another_and_resume_inside_the_second(toy_kit):
    def trainer_of(toy):
        trainer = toy_kit.trainer(toy, total=9)
        trainer.phases = (toy.phase(0.05, steps=4), toy.phase(0.01))
        return trainer

    whole = toy_kit.toy()
    expected = [
        (e.step, e.loss, e.learning_rate)
        for e in trainer_of(whole).run(toy_kit.stream(), stop=Stop())
    ]
    assert [rate for _, _, rate in expected] == [0.05] * 4 + [0.01] * 5

    first = trainer_of(toy_kit.toy())
    run = first.run(toy_kit.stream(), stop=Stop(), sync_at=lambda step: step == 6)
    got = [(e.step, e.loss, e.learning_rate) for e in (next(run) for _ in range(6))]
    state = copy.deepcopy(first.state())
    run.close()
    toy = toy_kit.toy()
    second = trainer_of(toy)
    second.restore(state)
    got += [(e.step, e.loss, e.learning_rate) for e in second.run(toy_kit.stream(), stop=Stop())]
    assert got == expected
    assert same(weights(toy), weights(whole))


def test_restore_refuses_other_weights(toy_kit):
    state = copy.deepcopy(toy_kit.trainer(toy_kit.toy()).state())
    state.tensors["weights"]["layer.weight"] = torch.zeros(2, 2)
    with pytest.raises(RunError, match=r"layer\.weight"):
        toy_kit.trainer(toy_kit.toy()).restore(state)

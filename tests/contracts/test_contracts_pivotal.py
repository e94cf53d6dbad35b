"""Pivotal tuning: a word first, then a LoRA; the border between the two phases."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from konomi.adapters.apply import Strengths, attach
from konomi.config.sections import SaveConfig
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.writer import content_of
from konomi.methods.lora import LoraConfig
from konomi.methods.pivotal import PivotalConfig
from konomi.methods.textual_inversion import TextualInversionConfig
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

TOTAL = 6


def start(kit, family="sd1", total=TOTAL, *, optimizer=None, **options):
    options = {"lora": LoraConfig(rank=4)} | options
    base = kit.base(family)
    recipe = kit.recipe(PivotalConfig(**options), **(optimizer or {}))
    method = kit.method(base, recipe)
    trainer = Trainer(
        method.plan(), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=total
    )
    return base, method, trainer


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.state().tensors["weights"].items()}


def moved(before, after):
    return {
        "words" if n.startswith("text_encoder") else "lora"
        for n in after
        if not torch.equal(after[n], before[n])
    }


@pytest.mark.parametrize("later", [0.0, 1e-4])
def test_each_phase_moves_its_own(kit, later):
    _, _, trainer = start(kit, word_steps=2, word_rate_later=later)
    states = [weights(trainer)]
    run = trainer.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: True)
    rates = []
    for event in run:
        states.append(weights(trainer))
        rates.append(event.learning_rate)
    found = [moved(before, after) for before, after in pairwise(states)]
    assert found == [{"words"}] * 2 + [{"words", "lora"} if later else {"lora"}] * 4
    assert rates[0] == 5e-3
    assert all(
        p.grad is None
        for phase in trainer.phases
        for g in phase.groups
        for p in g.parameters.values()
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.kernels
def test_the_first_phase_is_textual_inversion_and_the_second_a_lora_beside_its_word(kit, family):
    _, method, trainer = start(kit, family, word_steps=3)
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    plain = kit.base(family)
    recipe = kit.recipe(TextualInversionConfig(), learning_rate=5e-3)
    inversion = kit.method(plain, recipe)
    alone = Trainer(
        inversion.plan(), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=3
    )
    expected = [event.loss for event in alone.run(kit.stream(kit.batch()), stop=Stop())]
    assert losses[:3] == expected
    word = inversion.export()
    inversion.close()
    trained = method.inversion.tokens.parameters
    assert all(
        torch.equal(p, word.embeddings["sks"][n.partition(".")[0]]) for n, p in trained.items()
    )
    with attach(plain, [(word, Strengths())]):
        lora = kit.method(plain, kit.recipe(LoraConfig(rank=4)))
        lora.plan()
        rng = Rng.for_step(5, 3)
        loss = lora.loss(kit.batch(), rng)
    assert losses[3] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    "stopped_at", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 4))]
)
@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"kind": "schedule_free"},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"ema_decay": 0.9}, {"schedule": "cosine"})
        ),
    ],
    ids=lambda o: "-".join(o),
)
def test_resume_is_bit_exact_across_the_border(kit, stopped_at, optimizer):
    options = {"word_steps": 0.4, "word_rate_later": 1e-4, "optimizer": optimizer}
    _, _, whole = start(kit, **options)
    expected = [event.loss for event in whole.run(kit.stream(kit.batch()), stop=Stop())]
    _, _, first = start(kit, **options)
    run = first.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: step == stopped_at)
    losses = [next(run).loss for _ in range(stopped_at)]
    state = copy.deepcopy(first.state())
    run.close()
    _, _, second = start(kit, **options)
    second.restore(state)
    losses += [event.loss for event in second.run(kit.stream(kit.batch()), stop=Stop())]
    assert losses == expected
    a, b = weights(whole), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_phase_leaves_behind_what_would_be_saved(kit):
    """The average, not the last step's weights."""
    _, method, trainer = start(kit, word_steps=3, optimizer={"ema_decay": 0.9})
    run = trainer.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: step == 3)
    for _ in range(3):
        next(run)
    with trainer.weights_for_use():
        saved = {name: p.clone() for name, p in method.inversion.tokens.parameters.items()}
    list(run)
    after = method.inversion.tokens.parameters
    assert all(torch.equal(p, saved[name]) for name, p in after.items())


def test_a_longer_run_does_not_go_back_to_the_word(kit):
    _, _, first = start(kit, word_steps=0.5, total=4)
    list(first.run(kit.stream(kit.batch()), stop=Stop()))
    state = copy.deepcopy(first.state())
    assert state.numbers["phase"] == 1
    _, _, longer = start(kit, word_steps=0.5, total=12)
    longer.restore(state)
    before = weights(longer)
    list(longer.run(kit.stream(kit.batch()), stop=Stop()))
    assert longer.step == 12
    assert moved(before, weights(longer)) == {"lora"}


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_word_and_lora_lie_in_one_file(kit, family, tmp_path):
    _, method, trainer = start(kit, family, word_steps=2, optimizer={"learning_rate": 1e-2})
    list(trainer.run(kit.stream(kit.batch()), stop=Stop()))
    result = replace(method.export(), name="sks")
    assert content_of(result) == "lora"
    write_adapter(result, tmp_path / "sks.safetensors")
    back = read_adapter(tmp_path / "sks.safetensors")
    assert back.layers.keys() == result.layers.keys()
    assert torch.equal(
        back.embeddings["sks"]["text_encoder"], result.embeddings["sks"]["text_encoder"]
    )
    assert inspect_file(tmp_path / "sks.safetensors").tokens == {"sks": {"text_encoder": [4, 32]}}


@pytest.mark.parametrize("chosen", ["peft", "diffusers"])
def test_formats_without_words_are_refused_before_anything_else(kit, chosen):
    recipe = replace(kit.recipe(PivotalConfig()), save=SaveConfig(format=chosen))
    with pytest.raises(RecipeError, match=f"save.format is '{chosen}', which holds no words"):
        kit.method(kit.base("sd1"), recipe)

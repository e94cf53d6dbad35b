"""Every optimiser with every method, with one learning rate, with several, and with rates by
step.
"""

import copy
import math

import pytest
import torch

from konomi.config.sections import OptimizerConfig
from konomi.methods import METHODS
from konomi.methods.custom_diffusion import CustomDiffusionConfig
from konomi.methods.dreamartist import DreamArtistConfig
from konomi.methods.dreambooth import DreamboothConfig
from konomi.methods.full import FullConfig
from konomi.methods.lora import LoraConfig
from konomi.methods.pivotal import PivotalConfig
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free")
SEVERAL = {
    "lora": LoraConfig(rank=2, text_rank=2, b_rate_ratio=16.0),
    "full": FullConfig(text_encoder=True),
    "dreambooth": DreamboothConfig(train="lora", rank=2),
    "dreamartist": DreamArtistConfig(lora_rank=2),
    "pivotal": PivotalConfig(
        word_steps=1.0, word_rate_later=5e-4, lora=LoraConfig(rank=2, text_rank=2)
    ),
    "custom_diffusion": CustomDiffusionConfig(size_augmentation=False),
}
"""Settings with which a method has groups of different rates."""
ONE_BY_DEFAULT = [method.config_type() for method in METHODS]
RATES = {"plain": {}, "text rate": {"text_learning_rate": 3e-4}, "rates": {"rates": "2e-3:1, 1e-3"}}
QUICK = {
    *((optimizer, "lora", "plain") for optimizer in ("adafactor", "lion", "schedule_free")),
    ("adamw", "dreambooth", "rates"),
    ("prodigy", "dreamartist", "rates"),
    ("prodigy", "pivotal", "plain"),
}


def cases():
    """Every combination, all but a few among the slow tests."""
    for optimizer in OPTIMIZERS:
        for config in [*SEVERAL.values(), *ONE_BY_DEFAULT]:
            for rates in RATES:
                chosen = (optimizer, config.kind, rates) in QUICK and config is SEVERAL.get(
                    config.kind
                )
                several = "-several" if config in SEVERAL.values() else ""
                name = f"{optimizer}-{config.kind}{several}-{rates}"
                yield pytest.param(
                    optimizer, config, rates, id=name, marks=() if chosen else pytest.mark.slow
                )


def start(kit, config, optimizer):
    # The step that Prodigy finds grows faster on a shallow denoiser, and what its first steps
    # moved says less.
    base = kit.base("sd1", small=optimizer.get("kind") != "prodigy")
    # What the method itself takes for each group, not one number for all.
    recipe = kit.recipe(config, learning_rate=None, **optimizer)
    method = kit.method(base, recipe)
    return Trainer(
        method.plan(), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=6
    )


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.state().tensors["weights"].items()}


@pytest.mark.parametrize(("optimizer", "config", "rates"), list(cases()))
def test_every_group_moves_by_about_its_rate_and_resumes(kit, optimizer, config, rates):
    if optimizer not in ("adamw", "adafactor"):
        pytest.importorskip({"adamw8bit": "bitsandbytes", "lion": "lion_pytorch",
        "prodigy": "prodigyopt"}.get(
            optimizer, "schedulefree"
        ))  # fmt: skip
    options = {"kind": optimizer, "weight_decay": 0.0, **RATES[rates]}
    if optimizer == "prodigy":
        # Factors of the step that it finds.
        options |= {"text rate": {"text_learning_rate": 0.5}, "rates": {"rates": "1:1, 0.5"}}.get(
            rates, {}
        )
    trainer = start(kit, config, options)
    run = trainer.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: True)
    before = weights(trainer)
    losses = [next(run).loss for _ in range(4)]
    after, kept = weights(trainer), copy.deepcopy(trainer.state())
    losses.append(next(run).loss)
    assert all(map(math.isfinite, losses))
    distance = trainer.optimizer.param_groups[0].get("d", 1.0)
    for group in trainer.phases[trainer.phase_index].groups:
        moved = torch.cat(
            [(after[name] - before[name]).abs().flatten() for name in group.parameters]
        )
        # A step is about the learning rate for every value. A of a LoRA has no gradient in the
        # first, and pivotal's words have a larger rate in theirs.
        reached = moved.square().mean().sqrt().item() / (group.learning_rate * distance)
        assert 0.02 < reached < 40, group.name
    again = start(kit, config, options)
    again.restore(kept)
    resumed = again.run(kit.stream(kit.batch()), stop=Stop())
    assert next(resumed).loss == losses[4]
    ours, theirs = weights(again), weights(trainer)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dreamartists_loras_keep_their_own_rates_beside_rates_by_step(kit):
    trainer = start(kit, DreamArtistConfig(lora_rank=2), {"rates": "3e-3:10, 1e-3"})
    rates = {group.name: group.learning_rate for group in trainer.phases[0].groups}
    assert rates == {"words": 3e-3, "positive": 1e-4, "negative": 4e-5}


def test_prodigy_takes_rates_of_a_methods_own_as_shares(kit):
    """A step size for Adam is no factor for Prodigy: what counts is its ratio to the main one."""
    trainer = start(kit, DreamArtistConfig(lora_rank=2), {"kind": "prodigy"})
    rates = {group.name: group.learning_rate for group in trainer.phases[0].groups}
    assert rates == pytest.approx({"words": 1.0, "positive": 1e-4 / 3e-3, "negative": 4e-5 / 3e-3})
    trainer = start(kit, PivotalConfig(word_rate=2.5e-3), {"kind": "prodigy"})
    assert [group.learning_rate for group in trainer.phases[0].groups] == [0.5]


def test_the_rate_that_is_shown_for_prodigy_is_the_step_it_takes(kit):
    pytest.importorskip("prodigyopt")
    trainer = start(kit, LoraConfig(rank=2), {"kind": "prodigy"})
    events = list(trainer.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: True))
    assert events[-1].learning_rate == pytest.approx(trainer.optimizer.param_groups[0]["d"])
    assert 0 < events[-1].learning_rate < 0.1


def test_dreambooth_with_rates_takes_their_highest_for_both_parts(kit):
    trainer = start(kit, DreamboothConfig(), {"rates": "4e-6:10, 1e-6"})
    assert {group.name: group.learning_rate for group in trainer.phases[0].groups} == {
        "denoiser": 4e-6,
        "text_encoder": 4e-6,
    }


def test_optimizers_are_all_that_a_recipe_may_name():
    kinds = OptimizerConfig.__annotations__["kind"]
    assert set(OPTIMIZERS) == set(kinds.__args__)

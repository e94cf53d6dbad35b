"""Training a part of the layers: only they move, at the rates of their blocks, and a run goes on
bit for bit.
"""

import copy

import pytest

from konomi.config.blocks import BlockRates, LoraBlocks
from konomi.errors import ModelError, RecipeError
from konomi.methods.dreamartist import DreamArtistConfig
from konomi.methods.full import FullConfig
from konomi.methods.lora import LoraConfig
from konomi.methods.pivotal import PivotalConfig
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer


def everything(base):
    parts = {"denoiser": base.denoiser, "vae": base.vae, **base.text_encoders}
    return {
        f"{part}.{name}": p.detach().clone()
        for part, module in parts.items()
        for name, p in module.named_parameters()
    }


def trained(kit, family, config, *, steps=2, state=None, total=2):
    """(base, what it was, method, trainer) after some steps."""
    base = kit.base(family, small=family == "sd1")
    before = everything(base)
    recipe = kit.recipe(config)
    method = kit.method(base, recipe)
    trainer = Trainer(
        method.plan(), recipe, processes=Processes(0, 1, kit.device), total_steps=total
    )
    if state is not None:
        trainer.restore(state)
    run = trainer.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: step == steps)
    for event in run:
        if event.step == steps:
            break
    return base, before, method, trainer


def moved(base, before):
    return {name for name, weight in everything(base).items() if not weight.equal(before[name])}


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_full_moves_the_chosen_layers_alone_and_resumes_bit_for_bit(kit, family):
    config = FullConfig(
        targets=("OUT*", "!OUT00", "TE01:text"),
        blocks=BlockRates(rate_factors={"OUT01": 0.5, "*.conv1": 0.0}),
    )
    base, before, method, _ = trained(kit, family, config)
    names = moved(base, before)
    blocks = {base.layer_block(name) for name in names}
    assert "OUT00" not in blocks and blocks & {"OUT01", "OUT02"} and "TE01" in blocks
    assert all(block.startswith(("OUT", "TE01")) for block in blocks)
    assert not any(".conv1." in name for name in names)
    assert all("layers.1." in name for name in names if name.startswith("text_encoder"))
    rates = {group.name: group.learning_rate for group in method.plan()[0].groups}
    assert rates["denoiser x 0.5"] == rates["denoiser"] / 2 == 5e-4
    needs = kit.needs(base, method.recipe)
    assert needs.trains_text and set(needs.float32_parts) >= {"denoiser", "text_encoder"}
    share = sum(before[name].numel() for name in names) / sum(
        weight.numel()
        for name, weight in before.items()
        if name.partition(".")[0] in needs.float32_parts
    )
    assert needs.chosen.share == pytest.approx(share, rel=0.2)  # Some weights have no gradient.
    assert needs.notes == (needs.chosen.note,) and "all others stay frozen" in needs.notes[0]
    # In two sittings.
    _, _, _, half = trained(kit, family, config, steps=1)
    again, _, _, _ = trained(kit, family, config, state=copy.deepcopy(half.state()))
    gone_on = everything(again)
    assert all(weight.equal(gone_on[name]) for name, weight in everything(base).items())


def test_rates_fall_towards_the_input(kit):
    base = kit.base("sd1", small=True)
    recipe = kit.recipe(FullConfig(blocks=BlockRates(rate_decay=0.5)))
    groups = kit.method(base, recipe).plan()[0].groups
    rate = {
        base.layer_block(name): group.learning_rate for group in groups for name in group.parameters
    }
    order = sorted(
        rate, key=lambda name: (("IN", "M", "OUT").index(name.rstrip("0123456789")), name)
    )
    assert [rate[name] for name in reversed(order)] == [1e-3 * 0.5**i for i in range(len(order))]


def test_a_choice_of_the_text_encoder_alone_trains_it_alone(kit):
    base, before, method, _ = trained(kit, "sd1", FullConfig(targets=("TE*",)))
    assert method.parts == ("text_encoder",) and moved(base, before)
    assert all(name.startswith("text_encoder.") for name in moved(base, before))
    needs = kit.needs(base, kit.recipe(FullConfig(targets=("M00",), text_encoder=True)))
    assert needs.trains_text  # text_encoder asks for it beside the blocks.
    assert not kit.needs(base, kit.recipe(FullConfig(targets=("M00",)))).trains_text
    with pytest.raises(RecipeError, match="leave no layer to train"):
        kit.needs(
            base,
            kit.recipe(FullConfig(targets=("M00",), blocks=BlockRates(rate_factors={"MID": 0}))),
        )


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_lora_trains_the_chosen_layers_at_their_ranks_and_rates(kit, family):
    """Bit for bit in two sittings; everything else stays as it was."""
    config = LoraConfig(
        rank=4,
        alpha=2.0,
        targets=("OUT*", "!OUT00", "MID:attention.kv"),
        conv_rank=3,
        text_rank=2,
        blocks=LoraBlocks(
            ranks={"OUT01": 6, "OUT*:conv": 1, "*.to_out.0": 0, "TE01": 5},
            alphas={"OUT01": 3.0},
            rate_factors={"MID": 0.25, "TE02": 0},
        ),
    )
    base, before, method, trainer = trained(kit, family, config)
    found = method.export().layers
    blocks = {key: base.layer_block(key) for key in found}
    assert not moved(base, before)
    assert {name.rstrip("0123456789") for name in blocks.values()} == {"OUT", "M", "TE"} | (
        {"TE2_"} if family == "sdxl" else set()
    )
    assert "OUT00" not in blocks.values() and "TE02" not in blocks.values()
    assert not any(key.endswith("to_out.0") for key in found)
    for key, update in found.items():
        conv = key.endswith((".conv1", ".conv2", ".conv_shortcut", ".time_emb_proj", ".conv"))
        if blocks[key] == "M00" and not conv:
            assert key.rpartition(".")[2] in ("to_k", "to_v")
        usual = {"TE01": (5, 5.0), "OUT01": (6, 3.0)}.get(blocks[key])
        text = (2, 2.0) if blocks[key].startswith("TE") else None
        in_conv = (1, 1.0) if blocks[key].startswith("OUT") else (3, 3.0)
        wanted = in_conv if conv else usual or text or (4, 2.0)
        assert (update.rank, update.alpha) == wanted, key
    rates = {group.name: group for group in trainer.phases[0].groups}
    slow = rates["denoiser.b x 0.25"]
    assert slow.learning_rate == rates["denoiser.b"].learning_rate / 4
    assert {base.layer_block(name) for name in slow.parameters} == {"M00"}
    needs = kit.needs(base, method.recipe)
    assert needs.trains_text and needs.chosen.num_layers == len(found)
    assert "M00, OUT01" in needs.notes[0]
    method.close()
    _, _, _, half = trained(kit, family, config, steps=1)
    _, _, again, _ = trained(kit, family, config, state=copy.deepcopy(half.state()))
    ends = again.export().layers
    assert all(found[key].up.equal(ends[key].up) for key in found) and ends.keys() == found.keys()


def test_what_lora_does_not_choose_is_said_or_refused(kit):
    base = kit.base("sd1", lazy=True)
    needs = kit.needs(base, kit.recipe(LoraConfig(targets=("TE00",))))
    assert needs.trains_text and "optimizer.text_learning_rate" not in needs.unused
    assert kit.needs(base, kit.recipe(LoraConfig(targets=("text",)))).trains_text
    assert not kit.needs(base, kit.recipe(LoraConfig(targets=("OUT*",)))).trains_text
    ia3 = kit.needs(base, kit.recipe(LoraConfig(algorithm="ia3", targets=("OUT*",))))
    assert "method.blocks.ranks" in ia3.unused
    with pytest.raises(RecipeError, match="leave no layer to train"):
        kit.needs(base, kit.recipe(LoraConfig(blocks=LoraBlocks(ranks={"*": 0}))))
    with pytest.raises(RecipeError, match=r"method\.blocks\.ranks: this base has no block 'OUT44'"):
        kit.needs(base, kit.recipe(LoraConfig(blocks=LoraBlocks(ranks={"OUT44": 2}))))
    with pytest.raises(ModelError, match=r"method\.lora\.targets|Did you mean attention"):
        kit.needs(base, kit.recipe(PivotalConfig(lora=LoraConfig(targets=("atention",)))))
    assert not base.loaded_parts()
    dreamartist = kit.method(base, kit.recipe(DreamArtistConfig(lora_rank=2, targets=("OUT*",))))
    dreamartist.plan()
    assert {base.layer_block(k)[:3] for k in dreamartist.lora.branches["positive"].layers} == {
        "OUT"
    }

"""Options of the two methods, and inpainting bases, through the same loop."""

from dataclasses import replace

import pytest
import torch

from konomi.adapters.apply import Strengths, attach
from konomi.data.batch import Batch
from konomi.methods.full import FullConfig
from konomi.methods.lora import LoraConfig
from konomi.models.memory import channels_last, enable_gradient_checkpointing
from konomi.models.modes import eval_mode
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

LORA_OPTIONS = [
    {"conv_rank": 4, "rank": 2},
    {"text_rank": 4, "rank": 4},
    {"dora": True, "rank": 4},
    {"scaling": "sqrt_rank", "rank": 4, "alpha": 2.0},
    {"dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.2, "rank": 4},
    {"targets": ("cross_attention.kv",), "rank": 4},
]


def start(kit, config, family="sd1", total=3, precision=torch.float32, base=None, **optimizer):
    base = base or kit.base(family)
    recipe = kit.recipe(config, **optimizer)
    method = kit.method(base, recipe)
    base.place("cpu", precision, float32_parts=kit.needs(base, recipe).float32_parts)
    processes = Processes(0, 1, torch.device("cpu"))
    return (
        base,
        method,
        Trainer(method.plan(), recipe, processes=processes, total_steps=total, precision=precision),
    )


def train(trainer, batch, kit):
    return [event.loss for event in trainer.run(kit.stream(batch), stop=Stop())]


def noise_pred(base, kit):
    examples = kit.examples(seed=9)
    conditioning = base.with_sizes(
        base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
    )
    with torch.no_grad():
        return base.predict(examples.latents.mean, torch.tensor([500, 20]), conditioning)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("options", LORA_OPTIONS, ids=lambda o: "-".join(o))
def test_lora_options_export_what_was_trained(kit, options, family):
    base, method, trainer = start(kit, LoraConfig(**options), family, learning_rate=1e-2)
    losses = train(trainer, kit.batch(), kit)
    assert all(torch.isfinite(torch.tensor(losses)))
    with eval_mode(*trainer.phases[0].modules):
        live = noise_pred(base, kit)
    fresh = kit.base(family)
    original_base = noise_pred(fresh, kit)
    with attach(fresh, [(method.export(), Strengths())]):
        shown = noise_pred(fresh, kit)
    assert not torch.allclose(shown, original_base, atol=1e-4)
    torch.testing.assert_close(shown, live, rtol=1e-3, atol=1e-3)


def test_lora_plus_gives_b_its_own_rate(kit):
    _, _, trainer = start(
        kit, LoraConfig(rank=4, b_rate_ratio=16.0, text_rank=2), learning_rate=1e-3
    )
    rates = {g.name: g.learning_rate for g in trainer.phases[0].groups}
    assert rates == {"denoiser.a": 1e-3, "denoiser.b": 1.6e-2, "text.a": 5e-4, "text.b": 8e-3}


def test_full_with_text_encoder_trains_it(kit):
    base, method, trainer = start(kit, FullConfig(text_encoder=True))
    before = {
        n: p.detach().clone() for n, p in base.text_encoders["text_encoder"].named_parameters()
    }
    train(trainer, kit.batch(), kit)
    moved = [
        n
        for n, p in base.text_encoders["text_encoder"].named_parameters()
        if not torch.equal(p, before[n])
    ]
    assert len(moved) > len(before) / 2
    assert any(name.startswith("text_encoder.text_model.") for name in method.export().tensors)


@pytest.mark.parametrize("config", [LoraConfig(rank=4), FullConfig()], ids=lambda c: c.kind)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_inpainting_bases_train(kit, config, family):
    base = kit.base(family, inpainting=True)
    _, method, trainer = start(kit, config, base=base)
    assert kit.needs(base, method.recipe).pixels
    batch = kit.batch()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = train(trainer, Batch(replace(batch.subject, pixels=pixels)), kit)
    assert all(torch.isfinite(torch.tensor(losses)))


@pytest.mark.parametrize("config", [LoraConfig(rank=4), FullConfig()], ids=lambda c: c.kind)
@pytest.mark.kernels
def test_gradient_checkpointing_and_channels_last_change_nothing_but_rounding(kit, config):
    _, _, plain = start(kit, config)
    expected = train(plain, kit.batch(), kit)
    base, _, trainer = start(kit, config)
    enable_gradient_checkpointing(base)
    channels_last(base)
    assert train(trainer, kit.batch(), kit) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", [LoraConfig(rank=4), FullConfig()], ids=lambda c: c.kind)
@pytest.mark.kernels
def test_bf16_follows_float32(kit, config):
    _, _, exact = start(kit, config, total=8)
    expected = train(exact, kit.batch(), kit)
    _, _, trainer = start(kit, config, total=8, precision=torch.bfloat16)
    losses = train(trainer, kit.batch(), kit)
    assert losses == pytest.approx(expected, rel=0.03)
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())


@pytest.mark.kernels
def test_fp16_scaler_resumes_exactly(kit):
    """The scaler's growth counter is part of the state (on the CPU the scaler works like on
    CUDA).
    """
    import copy

    def fp16(total):
        trainer = start(kit, LoraConfig(rank=4), total=total)[2]
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return trainer

    whole = fp16(6)
    expected = train(whole, kit.batch(), kit)
    first = fp16(3)
    losses = train(first, kit.batch(), kit)
    state = copy.deepcopy(first.state())
    second = fp16(6)
    second.restore(state)
    losses += train(second, kit.batch(), kit)
    assert losses == expected
    assert second.scaler.get_scale() == whole.scaler.get_scale() == 32.0
    ours, theirs = second.state().tensors["weights"], whole.state().tensors["weights"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

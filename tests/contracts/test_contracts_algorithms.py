"""What every algorithm of `lora` keeps to, with every family. A new kind of update that is trained
is picked up from KINDS.
"""

import copy

import pytest
import torch

from konomi.adapters.apply import Strengths, attach, fold
from konomi.config.overrides import named_method
from konomi.errors import RecipeError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.methods.lora import LoraConfig
from konomi.methods.lora_settings import ALGORITHMS
from konomi.tasks.recipes import METHOD_CONFIGS
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

EVERYWHERE = {"rank": 4, "conv_rank": 4, "text_rank": 4, "targets": ("attention", "feed_forward")}
FAMILIES = ("sd1", "sd2", "sdxl")
ONE_FAMILY = {"boft": "sd2", "dylora": "sdxl", "pissa": "sd1", "olora": "sd2", "glora": "sdxl"}
"""What a family names and how an algorithm computes do not meet: one each of the later ones."""
CASES = [
    pytest.param(
        family,
        algorithm,
        id=f"{algorithm}-{family}",
        marks=[pytest.mark.slow] * (family != "sd1" or algorithm in ONE_FAMILY),
    )
    for algorithm in (*ALGORITHMS, "pissa", "olora")
    for family in FAMILIES
    if ONE_FAMILY.get(algorithm, family) == family
]


def start(kit, family, config):
    base = kit.base(family, small=family == "sd1")
    recipe = kit.recipe(config, learning_rate=5e-3)
    method = kit.method(base, recipe)
    trainer = Trainer(method.plan(), recipe, processes=Processes(0, 1, kit.device), total_steps=4)
    return base, method, trainer


def noise_pred(base, kit):
    examples = kit.examples(seed=9)
    conditioning = base.with_sizes(
        base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
    )
    with torch.no_grad():
        return base.predict(examples.latents.mean, torch.tensor([500, 20]), conditioning)


@pytest.mark.parametrize(("family", "algorithm"), CASES)
def test_trains_resumes_saves_loads_attaches_and_folds(kit, tmp_path, family, algorithm):
    if algorithm in ALGORITHMS:
        config = LoraConfig(algorithm=algorithm, **EVERYWHERE)
    else:
        config = LoraConfig(init=algorithm, **EVERYWHERE)
    base, method, trainer = start(kit, family, config)
    plain = noise_pred(copy.deepcopy(base), kit) if not method.live.detach() else None
    method.live.attach()
    torch.testing.assert_close(noise_pred(base, kit), plain, rtol=1e-4, atol=1e-5)
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    batch = kit.batch()
    losses = [event.loss for event in trainer.run(kit.stream(batch), stop=Stop())]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(torch.equal(v, before[n]) for n, v in base.denoiser.state_dict().items())
    weights = trainer.state().tensors["weights"]

    _, at_start, first = start(kit, family, config)
    assert any(not torch.equal(weights[n], p) for n, p in at_start.live.parameters.items())
    run = first.run(kit.stream(batch), stop=Stop(), sync_at=lambda step: step == 2)
    again = [next(run).loss, next(run).loss]
    state = copy.deepcopy(first.state())
    run.close()
    _, _, second = start(kit, family, config)
    second.restore(state)
    again += [event.loss for event in second.run(kit.stream(batch), stop=Stop())]
    assert again == losses
    resumed = second.state().tensors["weights"]
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)

    base.denoiser.eval()
    for encoder in base.text_encoders.values():
        encoder.eval()
    live = noise_pred(base, kit)
    assert not torch.allclose(live, plain, atol=1e-3)
    method.close()
    path = tmp_path / "sks.safetensors"
    write_adapter(method.export(), path)
    loaded = read_adapter(path)
    assert not loaded.notes
    report = inspect_file(path)
    assert report.family == family and not report.unknown
    with attach(base, [(loaded, Strengths(0.0, 0.0))]):
        assert torch.equal(noise_pred(base, kit), plain)
    with attach(base, [(loaded, Strengths())]):
        torch.testing.assert_close(noise_pred(base, kit), live, rtol=1e-3, atol=1e-3)
    fold(base, [(loaded, Strengths())])
    torch.testing.assert_close(noise_pred(base, kit), live, rtol=1e-3, atol=1e-3)


def test_a_name_on_the_command_line_is_a_method_first_then_an_algorithm():
    assert named_method("full", METHOD_CONFIGS)[0] is not LoraConfig
    for name in ALGORITHMS.keys() - {"lora", "full"}:
        assert named_method(name, METHOD_CONFIGS) == (LoraConfig, {"algorithm": name})
    with pytest.raises(RecipeError, match="loha"):
        named_method("loho", METHOD_CONFIGS)


def test_own_settings_are_a_section_of_the_algorithms_name():
    for name, training in ALGORITHMS.items():
        if training.settings is not None:
            assert isinstance(getattr(LoraConfig(), name), training.settings)


def test_what_an_algorithm_does_not_have_is_named_and_does_nothing(kit):
    base = kit.base("sd1", lazy=True)
    usual = kit.needs(base, kit.recipe(LoraConfig(algorithm="full"))).unused
    assert {"method.rank", "method.alpha", "method.conv_alpha", "method.dora"} <= usual.keys()
    assert "method.rank_dropout" not in usual
    plain = kit.needs(base, kit.recipe(LoraConfig(algorithm="loha"))).unused
    assert "method.b_rate_ratio" in plain and "method.rank" not in plain
    with pytest.raises(RecipeError, match="a run saves LoRA alone"):
        from dataclasses import replace

        recipe = kit.recipe(LoraConfig(algorithm="full"))
        kit.needs(base, replace(recipe, save=replace(recipe.save, format="diffusers")))

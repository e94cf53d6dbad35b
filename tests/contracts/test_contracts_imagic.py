"""Imagic: both phases, the file, and what is drawn with it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from konomi.adapters.apply import Strengths, attach
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.random import Rng
from konomi.errors import FileFormatError, ModelError, RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.generation.drawing import PromptEncoder, drawing_of, with_size
from konomi.generation.request import Request
from konomi.methods.imagic import ImagicConfig
from konomi.methods.lora_settings import LoraConfig

CONFIG = ImagicConfig(prompt="a sitting dog", lora=LoraConfig(rank=2, targets=("cross_attention",)))


def planned(kit, family, **options):
    base = kit.base(family, small=family == "sd1")
    method = kit.method(base, kit.recipe(replace(CONFIG, **options)))
    return base, method, method.plan()


@pytest.mark.parametrize("family", ["sd1", "sdxl", pytest.param("sd2", marks=pytest.mark.slow)])
def test_the_state_starts_as_the_prompts_own_and_only_the_phases_parameters_get_gradients(
    kit, family
):
    base, method, phases = planned(kit, family)
    assert [phase.name for phase in phases] == ["text state", "lora"]
    text = method.recipe.text
    target = base.encode_captions(["a sitting dog"], text)
    states = method.states.parameters
    assert set(states) == ({"states", "pooled"} if family == "sdxl" else {"states"})
    torch.testing.assert_close(states["states"].detach(), target.states)
    batch, rng = kit.batch(), Rng.for_step(0, 3)
    layers = method.lora.layers.parameters.values()

    phases[0].loss(batch, rng).backward()
    assert all(parameter.grad is not None for parameter in states.values())
    assert all(parameter.grad is None for parameter in layers)

    # By hand: the same noise, the plain denoising loss of this state.
    inputs = method.denoising.inputs(batch.subject, rng)
    e, noised = states["states"].detach().clone().requires_grad_(True), inputs.noised
    pooled = None if family != "sdxl" else states["pooled"].detach().expand(2, -1)
    told = Conditioning(e.expand(2, -1, -1), pooled, inputs.conditioning.sizes)
    answer = base.predict(noised.noisy_latents, noised.timesteps_B, told)
    wanted = base.process.target(noised.latents, noised.noise, noised.timesteps_B)
    (by_hand,) = torch.autograd.grad((answer - wanted).square().mean(), [e])
    torch.testing.assert_close(states["states"].grad, by_hand, rtol=1e-3, atol=1e-7)

    for parameter in states.values():
        parameter.grad = None
    phases[1].loss(batch, rng).backward()
    assert all(parameter.grad is None for parameter in states.values())
    assert any(parameter.grad is not None for parameter in layers)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_any_eta_is_drawn_from_the_file(kit, family, tmp_path):
    base, method, _ = planned(kit, family)
    with torch.no_grad():
        for parameter in method.states.parameters.values():
            parameter += torch.randn_like(parameter)
    result = method.export()
    method.close()
    path = tmp_path / "dog.safetensors"
    edit = replace(result.edit, size=(64, 48))
    write_adapter(replace(result, edit=edit), path, dtype=torch.float16)
    read = read_adapter(path)
    assert (read.edit.prompt, read.edit.size, read.notes) == ("a sitting dog", (64, 48), ())
    for one in ("target", "found"):  # What is mixed is not rounded.
        assert torch.equal(getattr(read.edit, one).states, getattr(result.edit, one).states)
    assert read.layers.keys() == result.layers.keys()

    encode = PromptEncoder(base)
    with attach(base, [(read, Strengths())]), torch.no_grad():

        def state(**options):
            settings = {"prompt": "a sitting dog", "steps": 2, "guidance": 1, "edit": read.edit}
            request = with_size(base, Request(**settings | options))
            drawing = drawing_of(base, request, encode)
            return drawing.positive[0]

        target, found = (getattr(read.edit, one) for one in ("target", "found"))
        for eta in (-0.3, 0.0, 0.7, 1.0, 1.4):
            drawn = state(eta=eta)
            for name in ("states", "pooled") if family == "sdxl" else ("states",):
                a, b = (getattr(one, name).double() for one in (target, found))
                mixed = eta * a + (1 - eta) * b
                torch.testing.assert_close(getattr(drawn, name).double(), mixed, rtol=0, atol=1e-5)
        other = base.encode_captions(["a cat"], method.recipe.text).states
        mixed = 0.5 * other + 0.5 * found.states
        torch.testing.assert_close(state(prompt="a cat", eta=0.5).states, mixed)
        with pytest.raises(RecipeError, match="more than 75 tokens"):
            state(prompt="a cat " * 60)
        with pytest.raises(RecipeError, match="eta is 11"):
            state(eta=11)
        wide = Conditioning(torch.zeros(1, 77, 7))
        with pytest.raises(ModelError, match=r"are 7 wide and this base's"):
            state(edit=replace(read.edit, target=wide, found=wide))


def test_faults_of_the_file_and_bad_input_are_one_line(kit, tmp_path):
    _, method, _ = planned(kit, "sd1")
    path = tmp_path / "dog.safetensors"
    write_adapter(method.export(), path)
    tensors = load_file(path)

    def refused(**changes):
        bad = tmp_path / "bad.safetensors"
        kept = {n: t for n, t in (tensors | changes).items() if t is not None}
        save_file(kept, bad, metadata={})
        with pytest.raises(FileFormatError) as caught:
            read_adapter(bad)
        (line,) = str(caught.value).splitlines()
        return line

    found, target = "imagic.found.states", "imagic.target.states"
    assert f"{found} is missing" in refused(**{found: None})
    assert f"{found} has shape [1, 70, 32]" in refused(**{found: torch.zeros(1, 70, 32)})
    assert f"{target} has shape [2, 77, 32]" in refused(**{target: torch.zeros(2, 77, 32)})
    assert "imagic.found.pooled is missing" in refused(
        **{"imagic.target.pooled": torch.zeros(1, 3)}
    )
    assert "NaN" in refused(**{found: torch.full((1, 77, 32), float("nan"))})
    assert "imagic.other" in refused(**{"imagic.other": torch.zeros(2)})
    with pytest.raises(FileFormatError, match="only kohya's files hold the text states"):
        write_adapter(method.export(), tmp_path / "peft", "peft")

    base = kit.base("sd1", small=True)
    recipe = kit.recipe(CONFIG)
    for wrong, why in (
        (replace(CONFIG, prompt=" "), r"method\.prompt: must be set"),
        (replace(CONFIG, lora=LoraConfig(text_rank=2)), r"method\.lora\.text_rank"),
    ):
        with pytest.raises(RecipeError, match=why):
            kit.needs(base, replace(recipe, method=wrong))
    with pytest.raises(RecipeError, match="holds no text states"):
        kit.needs(base, replace(recipe, save=replace(recipe.save, format="peft")))

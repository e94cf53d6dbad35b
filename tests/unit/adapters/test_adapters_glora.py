"""GLoRA against lycoris-lora and a float64 formula."""

import pytest
import torch
from torch import nn

from konomi.adapters.delta import delta
from konomi.adapters.kinds import LayerSettings
from konomi.adapters.kinds.generalized import Generalized
from konomi.errors import ModelError
from konomi.formats.layers import LayerError, layer_from_parts


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_lycoris_computes_and_learns_the_same(kernel):
    pytest.importorskip("lycoris")
    from lycoris.modules.glora import GLoRAModule

    layer = nn.Conv2d(6, 8, kernel, padding=kernel // 2) if kernel else nn.Linear(6, 8)
    layer.requires_grad_(False)
    judge = GLoRAModule("x", layer, 1.0, 3, alpha=2)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.add_(draw(*parameter.shape, seed=2))
    parts = {name: value.detach() for name, value in judge.custom_state_dict().items()}
    update = layer_from_parts(parts)
    assert type(update) is Generalized and update.rank == 3 and update.alpha == 2
    assert {n: tuple(t.shape) for n, t in update.to_parts(norm=False).items()} == {
        n: tuple(t.shape) for n, t in parts.items()
    }
    wanted = judge.get_diff_weight()[0].detach()
    torch.testing.assert_close(delta(update, layer.weight), wanted, rtol=1e-5, atol=1e-5)
    training = Generalized.about.training
    trained = training.spec(LayerSettings(3, 2.0)).layer("denoiser.x", layer, seed=0)
    trained.load(update)
    x = draw(2, 6, 5, 5, seed=1) if kernel else draw(3, 7, 6, seed=1)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    answers = [judge(inputs[0]), trained(inputs[1])]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-5)
    for answer in answers:
        answer.square().mean().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
    for name in ("a1", "a2", "b1", "b2"):
        got, wanted = getattr(trained, name).grad, getattr(judge, name).weight.grad
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_with_a_core_it_is_its_formula_cell_by_cell():
    a1, a2, b1, b2 = draw(6, 3), draw(3, 6, seed=1), draw(8, 3, seed=2), draw(3, 6, seed=3)
    core, weight = draw(3, 3, 2, 2, seed=4).double(), draw(8, 6, 2, 2, seed=5).double()
    update = Generalized(a1, a2, b1, b2, 1.5, core)
    wanted = torch.zeros_like(weight)
    for y in range(2):
        for x in range(2):
            mixed = weight[:, :, y, x] @ a1.double() @ a2.double()
            added = b1.double() @ core[:, :, y, x] @ b2.double()
            wanted[:, :, y, x] = 0.5 * (mixed + added)
    torch.testing.assert_close(delta(update, weight), wanted, rtol=1e-10, atol=1e-12)


def test_what_does_not_fit_is_named():
    parts = {
        "a1.weight": draw(6, 3),
        "a2.weight": draw(3, 6),
        "b1.weight": draw(8, 3),
        "b2.weight": draw(3, 6),
    }
    with pytest.raises(LayerError, match="b1"):
        layer_from_parts({name: t for name, t in parts.items() if name != "b1.weight"})
    with pytest.raises(LayerError, match="rank 2; a2 has 3"):
        layer_from_parts(parts | {"b1.weight": draw(8, 2)})
    with pytest.raises(LayerError, match="different inputs"):
        layer_from_parts(parts | {"a1.weight": draw(5, 3)})
    with pytest.raises(ModelError, match="is for 6 inputs"):
        delta(layer_from_parts(parts), draw(8, 5))

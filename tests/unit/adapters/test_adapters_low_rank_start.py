"""LoRA that starts along the weight's own directions (PiSSA, OLoRA), against PEFT; DyLoRA."""

import copy
import warnings

import pytest
import torch
from torch import nn

from konomi.adapters.delta import delta
from konomi.adapters.kinds.dylora import first_ranks
from konomi.adapters.kinds.low_rank import LoraSpec, LowRank
from konomi.adapters.kinds.low_rank_start import leading_directions
from konomi.diffusion.random import Rng

ALPHA, RANK = 8.0, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Linear:
    layer = nn.Linear(20, 12)
    with torch.no_grad():
        layer.weight.copy_(draw(12, 20) * 0.2)
        layer.bias.copy_(draw(12, seed=5))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_peft_learns_the_same(init):
    peft = pytest.importorskip("peft")
    layer, plain = linear(), linear()
    trained = LoraSpec(RANK, ALPHA, init=init).layer("denoiser.x", layer, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            nn.ModuleDict({"x": copy.deepcopy(plain)}),
            peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["x"], init_lora_weights=init),
        )
    judge = model.base_model.model["x"]
    a, b = judge.lora_A["default"].weight, judge.lora_B["default"].weight
    torch.testing.assert_close(trained.up @ trained.down, b @ a, rtol=1e-4, atol=1e-5)
    # From the same factors (singular vectors have signs of their own) the same gradients.
    with torch.no_grad():
        trained.down.copy_(a)
        trained.up.copy_(b)
    trained.first = (a.detach().clone(), b.detach().clone())
    x = draw(3, 5, 20, seed=1)
    answers = [trained(x), judge(x)]
    assert torch.equal(answers[0], plain(x)) and torch.equal(layer.weight, plain.weight)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    for answer in answers:
        (answer - 0.3).square().mean().backward()
    torch.testing.assert_close(trained.down.grad, a.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained.up.grad, b.grad, rtol=1e-4, atol=1e-6)
    # After a step the file is a LoRA of twice the rank, which does what PEFT's layer does.
    with torch.no_grad():
        for parameter in (a, b, trained.down, trained.up):
            parameter.sub_(0.1 * parameter.grad)
    update = trained.export()
    assert update.rank == 2 * RANK
    with torch.no_grad():
        changed = x @ (plain.weight + delta(update, plain.weight)).t() + plain.bias
        torch.testing.assert_close(judge(x), changed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trained(x), changed, rtol=1e-4, atol=1e-5)


def test_convolutions_start_along_their_directions_too():
    conv = nn.Conv2d(6, 8, 3, padding=1).requires_grad_(False)
    for init in ("pissa", "olora"):
        trained = LoraSpec(RANK, ALPHA, init=init).layer("denoiser.x", conv, seed=0)
        x = draw(2, 6, 5, 5)
        torch.testing.assert_close(trained(x), conv(x))
        started = LowRank(trained.down.detach(), trained.up.detach(), ALPHA)
        left = (conv.weight - delta(started, conv.weight)).flatten(1)
        if init == "pissa":
            values = torch.linalg.svdvals(conv.weight.flatten(1))
            assert torch.linalg.svdvals(left)[0] == pytest.approx(float(values[RANK]), rel=1e-4)
        with torch.no_grad():
            trained.up.add_(draw(*trained.up.shape, seed=3) * 0.1)
        changed = conv.weight + delta(trained.export(), conv.weight)
        wanted = nn.functional.conv2d(x, changed, conv.bias, padding=1)
        torch.testing.assert_close(trained(x), wanted, rtol=1e-4, atol=1e-5)


def test_leading_directions_of_a_large_matrix_are_those_of_the_whole_decomposition():
    u, v = torch.linalg.qr(draw(300, 300)).Q, torch.linalg.qr(draw(280, 280, seed=1)).Q
    values = 1 / torch.arange(1, 281)
    matrix = (u[:, :280] * values) @ v.t()
    left, s, right = leading_directions(matrix, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(s, values[:5], rtol=1e-4, atol=1e-5)
    best = (u[:, :5] * values[:5]) @ v[:, :5].t()
    torch.testing.assert_close((left * s) @ right, best, rtol=1e-3, atol=1e-4)


def test_dylora_computes_each_sample_in_the_first_ranks():
    samples = Rng.for_step(0, 0).for_samples(torch.arange(400))
    keep = first_ranks([1, 6], 2, samples)[:, 0]
    counts = keep.sum(1)
    # Nested, in units, all of them about as often.
    assert all(torch.equal(row, torch.arange(6) < count) for row, count in zip(keep, counts))
    assert {int(count) for count in counts.unique()} == {2, 4, 6}
    assert all(100 <= int((counts == size).sum()) <= 170 for size in (2, 4, 6))
    layer = linear()
    spec = LoraSpec(6, 6.0, unit=2)
    trained = spec.layer("denoiser.x", layer, seed=0)
    with torch.no_grad():
        trained.up.copy_(draw(12, 6))
    assert spec.has_dropout
    x = draw(400, 3, 20, seed=2)
    whole = layer(x) + x @ trained.down.t() @ trained.up.t()
    torch.testing.assert_close(trained(x), whole, rtol=1e-4, atol=1e-4)
    trained.rng = Rng.for_step(0, 0).for_samples(torch.arange(400))
    drawn = first_ranks([1, 6], 2, trained.rng.fork("dylora"))
    masked = layer(x) + ((x @ trained.down.t()) * drawn) @ trained.up.t()
    torch.testing.assert_close(trained(x), masked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(masked, whole, atol=1e-2)

"""8-bit AdamW as bitsandbytes computes it on a CPU, against torch's AdamW in float64."""

from importlib import metadata

import pytest
import torch
from torch import nn

from konomi.config.sections import OptimizerConfig
from konomi.errors import RecipeError
from konomi.methods.method import ParameterGroup
from konomi.training.checkpoint import read_checkpoint, write_checkpoint
from konomi.training.optimizers import make_optimizer, optimizer_state, restore_optimizer
from konomi.training.trainer import TrainState

pytest.importorskip(
    "bitsandbytes", minversion="0.50", reason="needs bitsandbytes 0.50 (pip install 'konomi[test]')"
)

CPU = torch.device("cpu")
RATE = 0.01
SMALL, LARGE = (63, 65), (70, 71)
"""4,095 values keep float32 moments; 4,970 do not, and are no whole number of blocks of 256."""


def start(shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def ours(*parameters):
    group = ParameterGroup("all", {f"w{i}": p for i, p in enumerate(parameters)}, RATE)
    return make_optimizer([group], OptimizerConfig(kind="adamw8bit"), CPU)


def descend(optimizer, parameters, steps):
    """Towards 0.5, each value along a parabola of a curvature of its own."""
    for _ in range(steps):
        for p in parameters:
            curvature = torch.linspace(0.1, 2, p.numel(), dtype=p.dtype).view(p.shape)
            p.grad = curvature * (p.detach() - 0.5)
        optimizer.step()


def in_float64(parameter, steps):
    exact = nn.Parameter(parameter.detach().double())
    optimizer = torch.optim.AdamW([exact], lr=RATE, weight_decay=0.01)
    descend(optimizer, [exact], steps)
    return exact.detach(), optimizer.state[exact]


def test_small_tensors_are_adamws():
    p = start(SMALL)
    expected, moments = in_float64(p, 100)
    optimizer = ours(p)
    descend(optimizer, [p], 100)
    assert optimizer.state[p]["state1"].dtype == torch.float32
    torch.testing.assert_close(p.detach().double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        optimizer.state[p]["state2"].double(), moments["exp_avg_sq"], rtol=1e-5, atol=1e-9
    )


def test_the_first_step_is_adamws_and_its_moments_go_to_the_nearest_value_of_the_map():
    p = start(LARGE)
    expected, moments = in_float64(p, 1)
    optimizer = ours(p)
    descend(optimizer, [p], 1)
    torch.testing.assert_close(p.detach().double(), expected, rtol=0, atol=1e-6)
    state = optimizer.state[p]
    for number, moment in (("1", moments["exp_avg"]), ("2", moments["exp_avg_sq"])):
        kept, values = state[f"state{number}"], state[f"qmap{number}"].double()
        assert kept.dtype == torch.uint8
        blocks = moment.flatten().split(256)
        largest = torch.stack([block.abs().max() for block in blocks])
        torch.testing.assert_close(state[f"absmax{number}"].double(), largest, rtol=1e-6, atol=0)
        share = torch.cat([block / top for block, top in zip(blocks, largest)])
        nearest = (share[:, None] - values).abs().amin(dim=1)
        chosen = (share - values[kept.flatten().long()]).abs()
        # Its search on the CPU is by table and takes a neighbour where two are almost equally near.
        assert torch.all(chosen <= nearest + 5e-5)


def test_large_tensors_stay_near_adamw():
    p = start(LARGE)
    began = p.detach().double()
    expected, _ = in_float64(p, 100)
    descend(ours(p), [p], 100)
    apart, way = (p.detach().double() - expected).abs(), (expected - began).abs()
    assert apart.mean() < 0.03 * way.mean()
    assert apart.max() < 0.1 * way.max()


def test_a_state_goes_through_a_checkpoint_bit_for_bit(tmp_path):
    whole, halves = [start(SMALL), start(LARGE, 1)], [start(SMALL), start(LARGE, 1)]
    descend(ours(*whole), whole, 9)
    first = ours(*halves)
    descend(first, halves, 4)
    names = {p: f"w{i}" for i, p in enumerate(halves)}
    tensors, numbers = optimizer_state(first, names)
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.uint8} == {
        "w1/state1",
        "w1/state2",
    }
    weights = {name: p.detach() for p, name in names.items()}
    state = TrainState(
        {"weights": weights, "optimizer": tensors}, {"step": 4, "optimizer": numbers}
    )
    read = read_checkpoint(write_checkpoint(tmp_path, state, {}, keep=1)).state

    again = [nn.Parameter(read.tensors["weights"][name].clone()) for name in ("w0", "w1")]
    second = ours(*again)
    names = {p: f"w{i}" for i, p in enumerate(again)}
    restore_optimizer(second, names, read.tensors["optimizer"], read.numbers["optimizer"])
    descend(second, again, 5)
    assert all(torch.equal(a, b) for a, b in zip(again, whole))


def test_moments_are_laid_out_as_a_checkpoint_brings_them_back():
    """CUDA kernels count values in memory order, so the order must be the one that a file keeps."""
    plain = start((16, 32, 3, 3))
    p = nn.Parameter(plain.detach().to(memory_format=torch.channels_last))
    optimizer, other = ours(p), ours(plain)
    descend(optimizer, [p], 3)
    descend(other, [plain], 3)
    assert optimizer.state[p]["state1"].is_contiguous()
    assert torch.equal(p, plain)


def test_a_version_without_code_for_the_cpu_is_named(monkeypatch):
    asked = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.49.2" if name == "bitsandbytes" else asked(name)
    )
    with pytest.raises(
        RecipeError, match=r"bitsandbytes 0\.49\.2 computes on GPUs only.*-U 'bitsandbytes>=0\.50'"
    ):
        ours(start(SMALL))
    group = ParameterGroup("all", {"w": start(SMALL)}, RATE)
    assert make_optimizer([group], OptimizerConfig(kind="adamw8bit"), torch.device("cuda"))

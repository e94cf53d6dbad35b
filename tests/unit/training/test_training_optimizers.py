import sys

import pytest
import torch
from torch import nn

from konomi.config.sections import OptimizerConfig
from konomi.errors import MissingExtraError
from konomi.methods.method import ParameterGroup
from konomi.training.optimizers import make_optimizer

CPU = torch.device("cpu")


def group(**options):
    torch.manual_seed(0)
    return ParameterGroup("all", {"w": nn.Parameter(torch.randn(4, 3))}, 0.1, **options)


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("adamw8bit", "bitsandbytes"),
        ("lion", "lion_pytorch"),
        ("prodigy", "prodigyopt"),
        ("schedule_free", "schedulefree"),
    ],
)
def test_an_absent_package_is_named_with_what_installs_it(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.optim", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'konomi\[optimizers\]'"):
        make_optimizer([group()], OptimizerConfig(kind=kind), CPU)


def test_groups_keep_their_rates_and_decay():
    optimizer = make_optimizer([group(), group(weight_decay=0.5)], OptimizerConfig(weight_decay=0.02), CPU)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.1, 0.02), (0.1, 0.5)]
    assert all(g["fused"] for g in optimizer.param_groups)


def test_the_clipped_gradient_is_the_one_torch_clips():
    """The fused kernel divides on the way; the step must be that of a gradient clipped before."""
    ours, theirs = group(), group()
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 50
    a = make_optimizer([ours], OptimizerConfig(), CPU)
    b = torch.optim.AdamW(theirs.parameters.values(), lr=0.1, weight_decay=0.01)
    for _ in range(3):
        ours.parameters["w"].grad = gradient.clone()
        a.grad_scale = (torch.nn.utils.get_total_norm([gradient]) / 2.0).clamp(min=1.0)
        a.step()
        theirs.parameters["w"].grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(theirs.parameters.values(), 2.0)
        b.step()
    torch.testing.assert_close(ours.parameters["w"], theirs.parameters["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("found_inf", [False, True])
def test_fused_adamw_is_torchs_bit_for_bit(found_inf):
    from konomi.training.fused_adamw import FusedAdamW

    def parameters():
        g = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(shape, generator=g)) for shape in ((7, 5), (3,), (2, 3, 3, 3))]

    ours, theirs = parameters(), parameters()
    groups = [{"lr": 0.1, "weight_decay": 0.01}, {"lr": 0.02, "weight_decay": 0.0}]
    split = lambda ps: [{"params": ps[:2], **groups[0]}, {"params": ps[2:], **groups[1]}]
    a = FusedAdamW(split(ours), betas=(0.9, 0.99))
    b = torch.optim.AdamW(split(theirs), betas=(0.9, 0.99), fused=True)
    g = torch.Generator().manual_seed(1)
    for step in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        if step == 2:
            ours[1].grad = theirs[1].grad = None
        if found_inf:
            for optimizer in (a, b):
                optimizer.found_inf = torch.tensor(float(step == 3))
        a.step()
        b.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs))
    assert all(torch.equal(a.state[p][k], b.state[q][k]) for p, q in zip(ours, theirs) for k in b.state[q])

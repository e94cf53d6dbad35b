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
    optimizer = make_optimizer(
        [group(), group(weight_decay=0.5)], OptimizerConfig(weight_decay=0.02), CPU
    )
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.1, 0.02),
        (0.1, 0.5),
    ]
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
        return [
            nn.Parameter(torch.randn(shape, generator=g)) for shape in ((7, 5), (3,), (2, 3, 3, 3))
        ]

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
    assert all(
        torch.equal(a.state[p][k], b.state[q][k]) for p, q in zip(ours, theirs) for k in b.state[q]
    )


def shapes_and_gradients(steps=5):
    g = torch.Generator().manual_seed(3)
    shapes = ((7, 5), (6,), (4, 3))
    return [torch.randn(shape, generator=g) for shape in shapes], [
        [torch.randn(shape, generator=g) for shape in shapes] for _ in range(steps)
    ]


def test_adafactor_is_transformers_own_without_scaling_by_the_parameter():
    transformers = pytest.importorskip("transformers.optimization")
    starts, gradients = shapes_and_gradients()
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    groups = lambda ps: [{"params": ps[:1], "lr": 0.1}, {"params": ps[1:], "lr": 0.02}]
    a = make_optimizer(
        [
            ParameterGroup("a", {"0": ours[0]}, 0.1),
            ParameterGroup("b", dict(zip("12", ours[1:])), 0.02),
        ],
        OptimizerConfig(kind="adafactor", weight_decay=0.3),
        CPU,
    )
    b = transformers.Adafactor(
        groups(theirs),
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        weight_decay=0.3,
    )
    for step in gradients:
        for p, q, gradient in zip(ours, theirs, step):
            p.grad, q.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_adafactor_moves_what_starts_at_zero_by_its_rate():
    """B of a LoRA: torch's own Adafactor takes a thousandth of the rate there."""
    zero = nn.Parameter(torch.zeros(8, 4))
    optimizer = make_optimizer(
        [ParameterGroup("b", {"b": zero}, 1e-3)], OptimizerConfig(kind="adafactor"), CPU
    )
    zero.grad = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert 3e-4 < zero.detach().square().mean().sqrt() <= 1.001e-3


def test_adafactor_keeps_a_mean_for_each_row_and_column():
    weight = nn.Parameter(torch.ones(6, 4, 3, 3))
    optimizer = make_optimizer(
        [ParameterGroup("w", {"w": weight}, 1e-3)], OptimizerConfig(kind="adafactor"), CPU
    )
    weight.grad = torch.ones(6, 4, 3, 3)
    optimizer.step()
    assert {k: tuple(v.shape) for k, v in optimizer.state[weight].items() if k != "step"} == {
        "exp_avg_sq_row": (6,),
        "exp_avg_sq_col": (36,),
    }


def prodigy_run(rates, *, decay=0.0, theirs=False):
    """Where two parameters end that minimise distances to fixed points, and the step size found."""
    prodigyopt = pytest.importorskip("prodigyopt")
    a, b = nn.Parameter(torch.full((6,), 0.5)), nn.Parameter(torch.zeros(4))
    if theirs:
        optimizer = prodigyopt.Prodigy(
            [{"params": [a]}, {"params": [b]}], lr=rates[0], weight_decay=decay
        )
    else:
        groups = [
            ParameterGroup(name, {name: p}, rate) for name, p, rate in zip("ab", (a, b), rates)
        ]
        optimizer = make_optimizer(groups, OptimizerConfig(kind="prodigy", weight_decay=decay), CPU)
    for _ in range(60):
        loss = (a - torch.arange(6.0)).square().sum() + (b - 2.0).abs().sum()
        a.grad, b.grad = torch.autograd.grad(loss, (a, b))
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == list(rates)
    return a.detach(), b.detach(), optimizer.param_groups[0]["d"]


def test_prodigy_with_one_rate_is_prodigyopt_bit_for_bit():
    ours, theirs = (
        prodigy_run((0.7, 0.7), decay=0.01),
        prodigy_run((0.7, 0.7), decay=0.01, theirs=True),
    )
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[2] == theirs[2]


def test_prodigys_groups_go_their_share_of_the_way():
    _, b, d = prodigy_run((1.0, 0.0))
    assert torch.equal(b, torch.zeros(4))
    assert d > 1e-3
    # A first step of the second group alone, against the formula: d0 x rate x bias correction,
    # sign of the gradient.
    b = nn.Parameter(torch.zeros(3))
    a = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer(
        [ParameterGroup("a", {"a": a}, 1.0), ParameterGroup("b", {"b": b}, 0.25)],
        OptimizerConfig(kind="prodigy"),
        CPU,
    )
    a.grad, b.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(b.detach(), 0.25 * a.detach())
    assert (a < 0).all()


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("adamw", None, (0.9, 0.999)),
        ("lion", None, (0.9, 0.99)),
        ("lion", (0.8, 0.95), (0.8, 0.95)),
    ],
)
def test_memory_of_moments_is_each_algorithms_own(kind, given, expected):
    if kind == "lion":
        pytest.importorskip("lion_pytorch")
    optimizer = make_optimizer([group()], OptimizerConfig(kind=kind, betas=given), CPU)
    assert optimizer.param_groups[0]["betas"] == expected


@pytest.mark.parametrize("rates", [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_prodigy_with_a_rate_of_zero_leaves_that_group_alone(rates):
    pytest.importorskip("prodigyopt")
    ones = [nn.Parameter(torch.ones(3)) for _ in rates]
    groups = [
        ParameterGroup(str(i), {str(i): p}, rate) for i, (p, rate) in enumerate(zip(ones, rates))
    ]
    optimizer = make_optimizer(groups, OptimizerConfig(kind="prodigy", weight_decay=0.1), CPU)
    for _ in range(3):
        for p in ones:
            p.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert [torch.equal(p, torch.ones(3)) for p in ones] == [rate == 0 for rate in rates]

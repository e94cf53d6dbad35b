"""The trainable layers: against peft, against the exported file, and against themselves."""

import math
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.kinds import LowRank
from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import TrainedLayers, inject
from konomi.diffusion.random import Rng
from konomi.errors import ModelError, RecipeError

PLAIN = LoraSpec(rank=4, alpha=2.0)


class Net(nn.Module):
    """One of each kind: a 3x3 and a 1x1 convolution, and linear layers with few and with
    many rows.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.negative_weights: dict[nn.Parameter, Tensor] = {}
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.proj = nn.Conv2d(8, 8, 1)
        self.first = nn.Linear(8, 24)
        self.last = nn.Linear(24, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.proj(torch.tanh(self.conv(x))))
        rows = x.flatten(2).transpose(1, 2)
        out: Tensor = self.last(torch.tanh(self.first(rows)))
        return out

    def layers(self) -> dict[str, nn.Module]:
        return {f"denoiser.{name}": module for name, module in self.named_children()}

    def module(self, key: str) -> nn.Module:
        return self.get_submodule(key.removeprefix("denoiser."))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(5))


def add(net: Net, spec: LoraSpec = PLAIN, seed: int = 3) -> TrainedLayers:
    return inject(net.layers(), lambda key: spec, seed=seed)


def stir(layers: TrainedLayers) -> None:
    """Move the update away from its start, where it is nothing."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in layers.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def steps(net: nn.Module, parameters: list[nn.Parameter], count: int) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
    losses = []
    for _ in range(count):
        loss = (net(images()) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rs_lora", [False, True])
def test_five_steps_equal_pefts(dora: bool, rs_lora: bool) -> None:
    net = Net()
    layers = add(net, LoraSpec(rank=4, alpha=2.0, rs_lora=rs_lora, dora=dora))
    start = layers.export().layers
    config = LoraConfig(
        r=4,
        lora_alpha=2,
        use_rslora=rs_lora,
        use_dora=dora,
        target_modules=["conv", "proj", "first", "last"],
    )
    theirs = get_peft_model(Net(), config)
    for key, update in start.items():
        module = theirs.base_model.model.get_submodule(key.removeprefix("denoiser."))
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(update.down)
    losses = steps(net, list(layers.parameters.values()), 5)
    wanted = steps(theirs, [p for p in theirs.parameters() if p.requires_grad], 5)
    assert losses == pytest.approx(wanted, rel=2e-6)
    assert losses[-1] < losses[0]
    for key, update in layers.export().layers.items():
        module = theirs.base_model.model.get_submodule(key.removeprefix("denoiser."))
        torch.testing.assert_close(
            update.down, module.lora_A["default"].weight.detach(), rtol=1e-4, atol=2e-5
        )
        torch.testing.assert_close(
            update.up, module.lora_B["default"].weight.detach(), rtol=1e-4, atol=2e-5
        )
        if dora:
            assert update.magnitude is not None
            length = module.lora_magnitude_vector["default"].weight.detach()
            torch.testing.assert_close(
                update.magnitude.flatten(), length.flatten(), rtol=1e-5, atol=1e-5
            )


def as_a1111_reads_it(
    weight: Tensor, down: Tensor, up: Tensor, scale: float, dora_scale: Tensor
) -> Tensor:
    """W' as A1111 computes it from a kohya file: the lengths of W + dW over all axes but the
    second.
    """
    merged = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale
    swapped = merged.transpose(0, 1)
    lengths = swapped.reshape(weight.shape[1], -1).norm(dim=1, keepdim=True).detach()
    lengths = lengths.reshape(weight.shape[1], *[1] * (weight.dim() - 1)).transpose(0, 1)
    return merged * (dora_scale / lengths)


def test_five_steps_per_input_equal_those_of_a1111s_formula() -> None:
    net, theirs = Net(), Net()
    layers = add(net, LoraSpec(rank=4, alpha=2.0, dora=True, dora_axis="input"))
    leaves = {name: p.detach().clone().requires_grad_() for name, p in layers.parameters.items()}
    plain = {name: p.detach() for name, p in theirs.named_parameters()}

    class Merged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            changed = dict(plain)
            for key in theirs.layers():
                parts = [leaves[f"{key}.{part}"] for part in ("down", "up")]
                name = f"{key.removeprefix('denoiser.')}.weight"
                changed[name] = as_a1111_reads_it(
                    plain[name], *parts, 0.5, leaves[f"{key}.magnitude"]
                )
            out: Tensor = torch.func.functional_call(theirs, changed, (x,))
            return out

    wanted = steps(Merged(), list(leaves.values()), 5)
    losses = steps(net, list(layers.parameters.values()), 5)
    assert losses == pytest.approx(wanted, rel=2e-6)
    assert losses[-1] < losses[0]
    for name, parameter in layers.parameters.items():
        torch.testing.assert_close(parameter.detach(), leaves[name].detach(), rtol=1e-4, atol=2e-5)
    lengths = {name: p.shape for name, p in layers.parameters.items() if name.endswith("magnitude")}
    assert lengths["denoiser.conv.magnitude"] == (1, 4, 1, 1)
    assert lengths["denoiser.first.magnitude"] == (1, 8)


def test_a_file_per_input_is_not_gone_on_with_per_output() -> None:
    exported = add(Net(), LoraSpec(rank=4, alpha=2.0, dora=True, dora_axis="input")).export().layers
    with pytest.raises(
        ModelError, match=r"per input, this recipe learns them per output. Set method.dora_axis"
    ):
        add(Net(), LoraSpec(rank=4, alpha=2.0, dora=True)).load(exported)


@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        LoraSpec(4, 8.0, rs_lora=True),
        LoraSpec(4, 4.0, dora=True),
        LoraSpec(4, 4.0, dora=True, dora_axis="input"),
    ],
    ids=["plain", "rs", "dora", "dora per input"],
)
def test_export_then_attach_reproduces_the_training_output(spec: LoraSpec) -> None:
    net = Net()
    layers = add(net, spec)
    stir(layers)
    trained = net(images()).detach()
    exported = layers.export().layers
    layers.detach()
    assert (trained - net(images())).abs().max() > 1e-3
    with attach(net, [(Adapter(layers=dict(exported)), Strengths())]):
        torch.testing.assert_close(net(images()), trained, rtol=1e-5, atol=1e-6)


def test_alpha_tells_the_scale_of_rank_stabilised_layers() -> None:
    exported = add(Net(), LoraSpec(rank=4, alpha=2.0, rs_lora=True)).export().layers
    assert all(
        update.alpha / 4 == pytest.approx(2.0 / math.sqrt(4)) for update in exported.values()
    )


def test_the_base_is_never_touched() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = net(images())
    layers = add(net)
    assert torch.equal(net(images()), plain), "the start changes nothing"
    assert list(net.state_dict()) == list(before)
    assert not any(p.requires_grad for p in net.parameters())
    steps(net, list(layers.parameters.values()), 2)
    with layers.pause():
        assert torch.equal(net(images()), plain)
        with layers.pause():
            pass
        assert torch.equal(net(images()), plain)
    assert not torch.equal(net(images()), plain)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    layers.detach()
    layers.detach()
    assert torch.equal(net(images()), plain)
    assert not any("forward" in vars(module) for module in net.modules())


def test_names_and_start_depend_on_key_and_seed_alone() -> None:
    first, second, other = add(Net()), add(Net(seed=1)), add(Net(), seed=4)
    names = [
        f"denoiser.{n}.{half}" for n in ("conv", "proj", "first", "last") for half in ("down", "up")
    ]
    assert list(first.parameters) == names
    one = inject({"denoiser.first": Net().first}, lambda key: PLAIN, seed=3)
    assert torch.equal(
        one.parameters["denoiser.first.down"], first.parameters["denoiser.first.down"]
    )
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name])
        if name.endswith(".down"):
            assert not torch.equal(value, other.parameters[name])
            # Kaiming-uniform with a = sqrt 5: uniform within 1 / sqrt(inputs).
            bound = 1 / math.sqrt(value[0].numel())
            assert 0.7 * bound < value.abs().max() <= bound
        else:
            assert not value.any()


def test_export_is_a_copy_and_load_goes_on_from_it() -> None:
    net = Net()
    layers = add(net, LoraSpec(rank=4, alpha=2.0, dora=True))
    stir(layers)
    exported = layers.export().layers
    wanted = net(images()).detach()
    layers.detach()
    # Another alpha here: the function must still be the file's.
    again = add(net, LoraSpec(rank=4, alpha=1.0, dora=True), seed=11)
    again.load(exported)
    torch.testing.assert_close(net(images()), wanted)
    assert (
        exported["denoiser.first"].down.data_ptr()
        != layers.parameters["denoiser.first.down"].data_ptr()
    )


def test_load_refuses_what_it_would_lose() -> None:
    layers = add(Net())
    good = layers.export().layers
    with pytest.raises(ModelError, match=r"denoiser\.x is in the file .* not trained"):
        layers.load({"denoiser.x": good["denoiser.first"]})
    small = add(Net(), LoraSpec(rank=2, alpha=2.0)).export().layers
    with pytest.raises(ModelError, match=r"denoiser\.conv\.down is \[2, 4, 3, 3\] .* another rank"):
        layers.load(small)
    mid = LowRank(
        good["denoiser.conv"].down, good["denoiser.conv"].up, 1.0, mid=torch.zeros(4, 4, 3, 3)
    )
    with pytest.raises(ModelError, match="Tucker"):
        layers.load({"denoiser.conv": mid})
    with pytest.raises(ModelError, match="DoRA"):
        layers.load(add(Net(), LoraSpec(rank=4, alpha=2.0, dora=True)).export().layers)


def test_too_large_a_rank_and_a_wrong_module_are_named() -> None:
    with pytest.raises(
        RecipeError, match=r"rank of denoiser\.last is 7; this layer allows at most 6"
    ):
        inject({"denoiser.last": Net().last}, lambda key: LoraSpec(rank=7, alpha=1.0), seed=0)
    with pytest.raises(ModelError, match="GroupNorm"):
        inject({"denoiser.norm": nn.GroupNorm(2, 4)}, lambda key: PLAIN, seed=0)
    with pytest.raises(ModelError, match="grouped"):
        inject({"denoiser.conv": nn.Conv2d(4, 4, 3, groups=2)}, lambda key: PLAIN, seed=0)


DROPOUTS: dict[str, Callable[[], LoraSpec]] = {
    "input": lambda: LoraSpec(4, 4.0, dropout=0.5),
    "rank": lambda: LoraSpec(4, 4.0, rank_dropout=0.5),
    "module": lambda: LoraSpec(4, 4.0, module_dropout=0.5),
    "all with dora": lambda: LoraSpec(
        4, 4.0, dropout=0.2, rank_dropout=0.2, module_dropout=0.2, dora=True
    ),
    "with dora per input": lambda: LoraSpec(
        4, 4.0, dropout=0.2, rank_dropout=0.2, dora=True, dora_axis="input"
    ),
}


@pytest.mark.parametrize("kind", list(DROPOUTS))
def test_dropout_is_a_function_of_its_key(kind: str) -> None:
    net = Net().train()
    layers = add(net, DROPOUTS[kind]())
    stir(layers)
    step = Rng.for_step(1, 2)

    def run(ids: list[int], rows: Tensor) -> Tensor:
        layers.begin_step(step.for_samples(torch.tensor(ids)))
        return net(rows).detach()

    whole = run([7, 8], images())
    torch.manual_seed(123)
    assert torch.equal(run([7, 8], images()), whole), "the global generator plays no part"
    halves = torch.cat([run([7], images()[:1]), run([8], images()[1:])])
    torch.testing.assert_close(halves, whole), "a batch in parts drops what the whole drops"
    assert not torch.allclose(run([9, 10], images()), whole)
    net.eval()
    assert not torch.allclose(net(images()), whole)


@pytest.mark.parametrize("kind", ["input", "rank"])
def test_dropout_keeps_the_mean(kind: str) -> None:
    net = Net().train()
    layer = {"denoiser.first": net.first}
    layers = inject(layer, lambda key: DROPOUTS[kind](), seed=3)
    stir(layers)
    rows = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)).expand(4096, 3, 8)
    layers.begin_step(Rng.for_step(0, 0).for_samples(torch.arange(4096)))
    dropped = net.first(rows).mean(0)
    net.eval()
    torch.testing.assert_close(dropped, net.first(rows[:1])[0], rtol=0, atol=0.03)


def test_everything_dropped_leaves_the_base() -> None:
    net = Net().train()
    plain = net(images())
    layers = add(net, LoraSpec(4, 4.0, dropout=1.0, rank_dropout=1.0))
    stir(layers)
    layers.begin_step(Rng.for_step(0, 0))
    torch.testing.assert_close(net(images(3))[:2], plain)


@pytest.mark.parametrize("kind", [None, *DROPOUTS])
def test_checkpointed_backward_equals_plain(kind: str | None) -> None:
    net = Net().train()
    layers = add(net, PLAIN if kind is None else DROPOUTS[kind]())
    stir(layers)
    gradients = []
    for recompute in (False, True):
        layers.begin_step(Rng.for_step(4, 5).for_samples(torch.arange(2)))
        out = checkpoint(net, images(), use_reentrant=False) if recompute else net(images())
        out.square().sum().backward()
        gradients.append({name: p.grad for name, p in layers.parameters.items()})
        for parameter in layers.parameters.values():
            parameter.grad = None
    for name, value in gradients[0].items():
        assert value is not None and (value.any() or kind == "module")
        assert torch.equal(value, gradients[1][name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_half_precision_bases_have_float32_masters(
    dtype: torch.dtype, autocast: bool, dora: bool
) -> None:
    exact, net = Net(), Net() if autocast else Net().to(dtype)
    spec = LoraSpec(4, 4.0, dora=dora)
    results = []
    for model, half in ((exact, False), (net, True)):
        layers = add(model, spec)
        stir(layers)
        with torch.autocast("cpu", dtype, enabled=half and autocast):
            out = model(images() if not half or autocast else images().to(dtype))
        out.float().square().mean().backward()
        assert all(p.dtype == torch.float32 for p in layers.parameters.values())
        results.append(
            (
                out.detach().float(),
                torch.cat([p.grad.flatten() for p in layers.parameters.values()]),
            )
        )  # type: ignore[union-attr]
    for wanted, got in zip(*results, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() / wanted.norm() < 0.03


def test_magnitudes_learn_in_bfloat16() -> None:
    """A gain of 1.001 rounds to 1 in bfloat16; it must act all the same."""
    net = Net().bfloat16()
    layers = inject({"denoiser.first": net.first}, lambda key: LoraSpec(4, 4.0, dora=True), seed=3)
    rows = torch.randn(512, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    before = net.first(rows).detach().double()
    with torch.no_grad():
        layers.parameters["denoiser.first.magnitude"].mul_(1.001)
    change = net.first(rows).double() - before
    wanted = (before - net.first.bias.double()) * 0.001
    assert 0.8 < (change * wanted).sum() / wanted.square().sum() < 1.2


# torch's own compiler makes the instance that torch warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_a_graph_break() -> None:
    net = Net()
    layers = add(net)
    stir(layers)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), net(images()))
    compiled(images()).sum().backward()
    assert all(p.grad is not None for p in layers.parameters.values())

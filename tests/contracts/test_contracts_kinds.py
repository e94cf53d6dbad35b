"""What every kind of update keeps to. A new kind is picked up from KINDS; what it computes is held
against other programs in `tests/formats`.
"""

import copy

import pytest
import torch
from torch import nn

from konomi.adapters.apply import Strengths, attach
from konomi.adapters.delta import delta
from konomi.adapters.kinds import KINDS, LayerSettings, tensors_of
from konomi.adapters.layers import inject
from konomi.diffusion.random import Rng
from konomi.errors import ModelError
from konomi.formats.layers import KNOWN_PARTS, kind_of_parts, layer_from_parts, part_of

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.about.name)
every_trained_kind = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.about.training], ids=lambda kind: kind.about.name
)
RANK = 4


class Net(nn.Module):
    """One layer of each sort that is trained, as a base."""

    def __init__(self):
        super().__init__()
        self.negative_weights, self.added_tokens = {}, {}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.point = nn.Conv2d(8, 8, 1)
            self.linear = nn.Linear(8, 16)
        self.requires_grad_(False)

    def forward(self, x):
        y = torch.tanh(self.point(torch.tanh(self.conv(x))))
        return self.linear(y.flatten(2).transpose(1, 2))

    def module(self, key):
        return self.get_submodule(key.removeprefix("denoiser."))

    def modules_by_key(self):
        return {
            f"denoiser.{name}": self.get_submodule(name) for name in ("conv", "point", "linear")
        }


def spec_of(kind, rank):
    return kind.about.training.spec(LayerSettings(rank, float(rank)))


def layered(kind, *, moved=True):
    """(net, its layers): at their start, or moved by a few steps' worth."""
    net = Net()
    spec = spec_of(kind, RANK)
    layers = inject(net.modules_by_key(), lambda key: spec, seed=7)
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in layers.parameters.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net, layers


@pytest.fixture
def x():
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@every_kind
def test_is_told_by_its_parts_alone(kind):
    about = kind.about
    assert about.name and about.complete
    assert len({other.about.name for other in KINDS}) == len(KINDS)
    for names in about.complete:
        assert names <= about.parts.keys() <= KNOWN_PARTS
        axes = {name: about.parts[name][0] for name in names if about.parts[name]}
        assert kind_of_parts(names, axes) is kind
    for other, name in about.spellings.items():
        assert part_of(other) == name and name in about.parts


@every_trained_kind
def test_starts_as_the_base_and_leaves_it_alone(kind, x):
    plain = Net()
    net, layers = layered(kind, moved=False)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-6, atol=1e-7)
    before = copy.deepcopy(net.state_dict())
    assert before.keys() == plain.state_dict().keys()
    net(x).square().sum().backward()
    reached = [name for name, parameter in layers.parameters.items() if parameter.grad is not None]
    assert reached == list(layers.parameters)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = layered(kind, moved=False)[1].parameters
    assert all(torch.equal(again[name], parameter) for name, parameter in layers.parameters.items())


@every_trained_kind
def test_learns(kind, x):
    net, layers = layered(kind, moved=False)
    optimizer = torch.optim.Adam(layers.parameters.values(), lr=3e-2)
    # What a rotation cannot reach it cannot learn.
    wanted = layered(kind)[0](x).detach()
    losses = []
    for _ in range(60):
        loss = (net(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@every_trained_kind
def test_what_is_exported_computes_what_was_trained(kind, x):
    net, layers = layered(kind)
    exported = layers.export()
    assert all(type(update) is kind for update in exported.layers.values())
    attached = Net()
    with attach(attached, [(exported, Strengths())]):
        torch.testing.assert_close(attached(x), net(x), rtol=1e-4, atol=1e-5)
    for key, update in exported.layers.items():
        assert update.rank in (None, RANK)
        weight = net.module(key).weight
        # Factors of a convolution may have I K K as one axis.
        assert update.input_width in (None, weight.shape[1], weight[0].numel())
        assert not any(
            parameter.data_ptr() == tensor.data_ptr()
            for parameter in layers.parameters.values()
            for tensor in tensors_of(update).values()
        )


@every_trained_kind
def test_goes_on_from_what_was_exported(kind, x):
    net, layers = layered(kind)
    other, started = layered(kind, moved=False)
    started.load(layers.export().layers)
    torch.testing.assert_close(other(x), net(x), rtol=1e-5, atol=1e-6)
    if all(update.rank for update in layers.export().layers.values()):
        narrow = inject(Net().modules_by_key(), lambda key: spec_of(kind, RANK - 1), seed=7)
        with pytest.raises(ModelError, match="another rank"):
            narrow.load(layers.export().layers)
    with pytest.raises(ModelError, match="not trained"):
        started.load({"denoiser.other": next(iter(layers.export().layers.values()))})


@every_trained_kind
def test_files_hold_it(kind):
    net, layers = layered(kind)
    for key, update in layers.export().layers.items():
        parts = update.to_parts(norm=False)
        axes = {name: tensor.dim() for name, tensor in parts.items()}
        assert kind_of_parts(parts, axes) is kind
        again = layer_from_parts(parts)
        assert type(again) is kind
        weight = net.module(key).weight
        torch.testing.assert_close(
            delta(again, weight), delta(update, weight), rtol=1e-6, atol=1e-7
        )


@every_trained_kind
def test_is_computed_as_precisely_as_the_weight(kind):
    net, layers = layered(kind)
    for key, update in layers.export().layers.items():
        weight = net.module(key).weight
        exact = delta(update, weight.double())
        assert exact.dtype == torch.float64
        torch.testing.assert_close(delta(update, weight).double(), exact, rtol=1e-4, atol=1e-6)
        assert delta(update, weight.half()).dtype == torch.float32
        assert delta(update, weight.to("meta")).shape == weight.shape
        with pytest.raises(ModelError):
            delta(update, torch.zeros(5, 7))
        norm = update.norm()
        assert norm is None or norm == pytest.approx(float(exact.norm()), rel=1e-4)
        difference = update.difference()
        assert difference is None or torch.allclose(
            difference.double().reshape(exact.shape), exact, atol=1e-5
        )


@every_trained_kind
def test_drops_the_same_however_a_batch_is_cut(kind, x):
    net, layers = layered(kind)
    net.train()
    ids = torch.arange(2)
    layers.begin_step(Rng.for_step(0, 0).for_samples(ids))
    whole = net(x)
    halves = []
    for row in range(2):
        layers.begin_step(Rng.for_step(0, 0).for_samples(ids[row : row + 1]))
        halves.append(net(x[row : row + 1]))
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-5, atol=1e-6)

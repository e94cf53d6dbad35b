"""Attaching and detaching: exact, linear, and careful with what does not fit."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach, fold
from konomi.adapters.kinds import Difference, LowRank, Rescale
from konomi.errors import ModelError

KEYS = ("denoiser.linear", "denoiser.conv", "text_encoder.linear")


class Base:
    family = "sd1"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.negative_weights: dict[nn.Parameter, Tensor] = {}
        self.modules = {
            "denoiser.linear": nn.Linear(8, 16).to(dtype),
            "denoiser.conv": nn.Conv2d(4, 6, 3).to(dtype),
            "denoiser.norm": nn.GroupNorm(2, 6).to(dtype),
            "text_encoder.linear": nn.Linear(8, 8, bias=False).to(dtype),
            "denoiser.act": nn.SiLU(),
        }

    def module(self, key: str) -> nn.Module:
        if key not in self.modules:
            raise ModelError(f"this base has no layer {key}.")
        return self.modules[key]

    def state(self) -> dict[str, Tensor]:
        return {
            f"{k}.{n}": p.detach().clone()
            for k, m in self.modules.items()
            for n, p in m.named_parameters()
        }


def low_rank(seed: int, *, size: float = 1.0, name: str = "", family: str = "") -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    layers = {
        "denoiser.linear": LowRank(draw(2, 8), draw(16, 2), alpha=1.0),
        "denoiser.conv": LowRank(draw(2, 4, 3, 3), draw(6, 2, 1, 1), alpha=2.0),
        "text_encoder.linear": LowRank(draw(2, 8), draw(8, 2), alpha=1.0),
    }
    return Adapter(layers=dict(layers), name=name, family=family)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> Iterator[str]:
    """Names that differ in any bit."""
    assert a.keys() == b.keys()
    return (name for name in a if not torch.equal(a[name], b[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep_on_cpu", [False, True])
def test_detach_restores_every_bit(dtype: torch.dtype, keep_on_cpu: bool) -> None:
    base = Base(dtype)
    before = base.state()
    pointers = {k: m.weight.data_ptr() for k, m in base.modules.items() if hasattr(m, "weight")}
    with attach(
        base,
        [(low_rank(1), Strengths(0.7, 0.3)), (low_rank(2), Strengths())],
        keep_on_cpu=keep_on_cpu,
    ):
        assert {n.rsplit(".", 1)[0] for n in same(before, base.state())} == set(KEYS)
    assert not list(same(before, base.state()))
    # Kept in place: graphs and other owners of the storage see the change.
    assert pointers == {
        k: m.weight.data_ptr() for k, m in base.modules.items() if hasattr(m, "weight")
    }


def test_weights_are_the_formula() -> None:
    base = Base()
    before, adapter = base.state(), low_rank(1)
    with attach(base, [(adapter, Strengths(denoiser=0.5, text=-2.0))]):
        for key, strength in zip(KEYS, (0.5, 0.5, -2.0), strict=True):
            update = adapter.layers[key]
            assert isinstance(update, LowRank)
            product = (
                update.up.double().flatten(1) @ update.down.double().flatten(1) * update.alpha / 2
            )
            wanted = before[f"{key}.weight"].double() + strength * product.view(
                before[f"{key}.weight"].shape
            )
            torch.testing.assert_close(
                base.module(key).weight.double(), wanted, rtol=1e-6, atol=1e-6
            )


def test_strength_zero_is_the_identity_and_asks_for_nothing() -> None:
    base = Base()
    before = base.state()
    stranger = Adapter(layers={"text_encoder_2.linear": low_rank(1).layers["denoiser.linear"]})
    attached = attach(base, [(low_rank(1), Strengths(0.0, 0.0)), (stranger, Strengths(1.0, 0.0))])
    assert attached.keys == ()
    assert not list(same(before, base.state()))


def test_linear_in_strength_and_independent_of_order() -> None:
    one, two = low_rank(1), low_rank(2)
    results = []
    for pairs in (
        [(one, 0.25), (two, 0.5)],
        [(two, 0.5), (one, 0.25)],
        [(one, 0.125), (two, 0.5), (one, 0.125)],
    ):
        base = Base()
        attach(base, [(adapter, Strengths(s, s)) for adapter, s in pairs])
        results.append(base.state())
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-6, atol=1e-6)


def test_rounded_once_in_bfloat16() -> None:
    base, exact = Base(torch.bfloat16), Base(torch.bfloat16)
    for module in exact.modules.values():
        module.float()
    adapters = [(low_rank(seed, size=0.03), Strengths()) for seed in range(8)]
    attach(base, adapters)
    attach(exact, adapters)
    for key in KEYS:
        assert torch.equal(base.module(key).weight, exact.module(key).weight.bfloat16())


def test_several_adapters_all_refer_to_the_untouched_weight() -> None:
    weight = Base().module("denoiser.linear").weight.detach()
    halves = [
        Adapter(layers={"denoiser.linear": Rescale(torch.full((16,), 0.5), on_input=False)})
        for _ in range(2)
    ]
    base = Base()
    attach(base, [(adapter, Strengths()) for adapter in halves])
    torch.testing.assert_close(base.module("denoiser.linear").weight.detach(), weight * 2.0)


def test_biases_and_norms() -> None:
    base = Base()
    before = base.state()
    update = Difference(weight=torch.ones(6), bias=torch.full((6,), 2.0))
    adapter = Adapter(
        layers={"denoiser.norm": update, "denoiser.linear": Difference(bias=torch.ones(16))}
    )
    with attach(base, [(adapter, Strengths(0.5))]):
        assert torch.equal(
            base.module("denoiser.norm").weight, before["denoiser.norm.weight"] + 0.5
        )
        assert torch.equal(base.module("denoiser.norm").bias, before["denoiser.norm.bias"] + 1.0)
        assert torch.equal(
            base.module("denoiser.linear").bias, before["denoiser.linear.bias"] + 0.5
        )
        assert torch.equal(base.module("denoiser.linear").weight, before["denoiser.linear.weight"])
    assert not list(same(before, base.state()))
    assert torch.equal(update.weight, torch.ones(6)), "the adapter itself must not change"  # type: ignore[arg-type]


def test_fold_is_attach_for_good() -> None:
    attached, folded = Base(), Base()
    pairs = [(low_rank(1), Strengths(0.5, 0.25))]
    attach(attached, pairs)
    assert set(fold(folded, pairs)) == set(KEYS)
    assert not list(same(attached.state(), folded.state()))


def test_attachments_come_off_in_the_opposite_order() -> None:
    base = Base()
    before = base.state()
    with attach(base, [(low_rank(1), Strengths())]):
        between = base.state()
        with attach(base, [(low_rank(2), Strengths())]):
            pass
        assert not list(same(between, base.state()))
    assert not list(same(before, base.state()))


@pytest.mark.parametrize("put_on", [attach, fold])
@pytest.mark.parametrize(
    ("key", "update", "words"),
    [
        (
            "denoiser.linear",
            LowRank(torch.zeros(2, 9), torch.zeros(16, 2), 1.0),
            "denoiser.linear [16, 8]",
        ),
        ("denoiser.linear", LowRank(torch.zeros(3, 8), torch.zeros(16, 2), 1.0), "rank 3, up 2"),
        (
            "denoiser.conv",
            LowRank(torch.zeros(2, 4, 1, 1), torch.zeros(6, 2, 1, 1), 1.0),
            "[6, 4, 3, 3]",
        ),
        (
            "denoiser.nowhere",
            LowRank(torch.zeros(2, 8), torch.zeros(16, 2), 1.0),
            "no layer denoiser.nowhere",
        ),
        (
            "denoiser.act",
            LowRank(torch.zeros(2, 8), torch.zeros(16, 2), 1.0),
            "denoiser.act has no weight",
        ),
        ("text_encoder.linear", Difference(bias=torch.zeros(8)), "this layer has none"),
    ],
)
def test_what_does_not_fit_names_layer_and_family_and_changes_nothing(
    put_on, key, update, words
) -> None:  # type: ignore[no-untyped-def]
    base = Base()
    before = base.state()
    good = low_rank(1, name="cat", family="sdxl")
    adapter = Adapter(layers={**good.layers, key: update}, name="cat", family="sdxl")
    with pytest.raises(ModelError) as raised:
        put_on(base, [(adapter, Strengths())])
    message = str(raised.value)
    assert words in message
    assert "cat is for sdxl, this base is sd1" in message
    assert "\n" not in message
    assert not list(same(before, base.state()))

"""Hypernetworks on a base, against the formulas of web UIs written out in plain PyTorch and
float64.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from konomi.adapters.adapter import Adapter, Hypernetwork, Perceptron
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.hypernetwork import (
    ACTIVATIONS,
    LiveHypernetwork,
    Network,
    build_network,
    check_fits,
    width_of,
)
from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import inject
from konomi.diffusion.random import Rng
from konomi.errors import ModelError
from konomi.models.random_base import random_base

FORMULAS = {
    "linear": lambda x, t: x,
    "relu": lambda x, t: x.clamp(min=0),
    "leakyrelu": lambda x, t: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x, t: torch.where(x > 0, x, x.exp() - 1),
    "swish": lambda x, t: x * (x + 3).clamp(0, 6) / 6,
    "hardswish": lambda x, t: x * (x + 3).clamp(0, 6) / 6,
    "tanh": lambda x, t: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "sigmoid": lambda x, t: 1 / (1 + (-x).exp()),
    "celu": lambda x, t: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x, t: x / 2 * (1 + torch.erf(x / 2**0.5)),
    "hardshrink": lambda x, t: torch.where(x.abs() > 0.5, x, 0.0),
    "hardsigmoid": lambda x, t: (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda x, t: x.clamp(-1, 1),
    "logsigmoid": lambda x, t: -(1 + (-x).exp()).log(),
    "mish": lambda x, t: x * (1 + x.exp()).log().tanh(),
    "prelu": lambda x, t: torch.where(x > 0, x, t * x),
    "relu6": lambda x, t: x.clamp(0, 6),
    "rrelu": lambda x, t: torch.where(x > 0, x, (1 / 8 + 1 / 3) / 2 * x),
    "selu": lambda x, t: (
        1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1))
    ),
    "silu": lambda x, t: x / (1 + (-x).exp()),
    "softplus": lambda x, t: (1 + x.exp()).log(),
    "softshrink": lambda x, t: torch.where(x > 0.5, x - 0.5, torch.where(x < -0.5, x + 0.5, 0.0)),
    "softsign": lambda x, t: x / (1 + x.abs()),
    "tanhshrink": lambda x, t: x - x.tanh(),
}

SPECS = [
    {"structure": (1, 2, 1)},
    {"structure": (1, 2, 2, 1), "activate_output": True},
    {"structure": (1, 1.5, 0.8, 1), "layer_norm": True},
    {
        "structure": (1, 2, 3, 1),
        "layer_norm": True,
        "activate_output": True,
        "dropout": (0, 0.3, 0.3, 0),
    },
    {"structure": (1, 2, 2, 1), "dropout": (0, 0.3, 0, 0)},
]


def random_tensors(width, spec, seed):
    """Numbers large enough to reach every branch of an activation."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"linear.{name}": t.shape for name, t in build_network(width, spec).state_dict().items()
    }
    return {
        n: torch.randn(s, generator=generator, dtype=torch.float64) * 0.4 for n, s in shapes.items()
    }


def by_formula(x, tensors, spec):
    """A web UI's network: Linear, activation, LayerNorm, Dropout, each taking one number of the
    row.
    """
    act = FORMULAS[spec.activation]
    position, count = 0, len(spec.structure) - 1
    for index in range(count):
        x = x @ tensors[f"linear.{position}.weight"].T + tensors[f"linear.{position}.bias"]
        position += 1
        if spec.activation != "linear" and (spec.activate_output or index < count - 1):
            x = act(x, tensors.get(f"linear.{position}.weight"))
            position += 1
        if spec.layer_norm:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            weight, bias = tensors[f"linear.{position}.weight"], tensors[f"linear.{position}.bias"]
            x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
            position += 1
        if spec.dropout and spec.dropout[index + 1] > 0:
            position += 1
    return x


def test_every_activation_has_a_formula_here():
    assert set(FORMULAS) == {"linear", *ACTIVATIONS}


@pytest.mark.parametrize(
    "shape", SPECS, ids=lambda s: "-".join(map(str, s["structure"])) + f"-{len(s)}"
)
@pytest.mark.parametrize("activation", FORMULAS)
def test_a_network_computes_its_formula(activation, shape):
    spec = Hypernetwork(pairs={}, activation=activation, **shape)
    tensors = random_tensors(10, spec, seed=1)
    network = Network(10, spec).double().eval()
    network.load_state_dict(tensors)
    x = torch.randn(
        2, 7, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).requires_grad_(True)
    torch.testing.assert_close(network(x), by_formula(x, tensors, spec), rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(network(x).square().sum(), [x, *network.parameters()])
    leaves = {n: t.clone().requires_grad_(True) for n, t in tensors.items()}
    names = [name for name, _ in network.named_parameters()]
    theirs = torch.autograd.grad(
        by_formula(x, leaves, spec).square().sum(), [x, *(leaves[n] for n in names)]
    )
    for one, other in zip(ours, theirs, strict=True):
        # torch's backward of hardsigmoid holds its 1/6 in float32.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def make(widths, seed, **options):
    spec = Hypernetwork(pairs={}, **{"activation": "mish", **options})
    pairs = {
        w: tuple(
            Perceptron({n: t.float() * 0.3 for n, t in random_tensors(w, spec, seed + h).items()})
            for h in (0, 9)
        )
        for w in widths
    }
    return replace(spec, pairs=pairs)


def widths_of(base):
    return sorted({width_of(layer) for layer in base.select_layers("attention.kv").values()})


def fallback_base():
    """A UNet that konomi's own class does not cover, so that diffusers' is used."""
    base = random_base("sd1", configs={"unet": {"resnet_time_scale_shift": "scale_shift"}})
    assert type(base.denoiser).__module__.startswith("diffusers.")
    return base


def answer(base):
    generator = torch.Generator().manual_seed(0)
    width = width_of(next(iter(base.select_layers("cross_attention.kv").values())))
    extra = None
    if base.family == "sdxl":
        extra = {
            "text_embeds": torch.zeros(2, 32),
            "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2),
        }
    dtype = base.dtype
    with torch.no_grad():
        return base.denoiser(
            torch.randn(2, 4, 8, 8, generator=generator).to(dtype),
            torch.tensor([500, 20]),
            encoder_hidden_states=torch.randn(2, 77, width, generator=generator).to(dtype),
            added_cond_kwargs=extra,
        )[0].float()


def rewritten(base, chain):
    """Every to_k and to_v of a copy computes the formula itself: what web UIs patch into
    attention.
    """
    for key, layer in base.select_layers("attention.kv").items():

        def forward(x, layer=layer, key=key):
            c = x.double()
            for spec, strength in chain:
                if c.shape[-1] in spec.pairs:
                    tensors = {
                        n: t.double()
                        for n, t in spec.pairs[c.shape[-1]][key.endswith("to_v")].tensors.items()
                    }
                    c = c + strength * by_formula(c, tensors, spec)
            return F.linear(c.to(layer.weight.dtype), layer.weight)

        layer.forward = forward
    return base


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "diffusers"])
def test_two_chain_in_order_on_the_whole_denoiser(family):
    def build():
        return fallback_base() if family == "diffusers" else random_base(family)

    base = build()
    widths = widths_of(base)
    one, two = (
        make(widths, 1),
        make(widths[-1:], 5, activation="relu", structure=(1, 2, 2, 1), layer_norm=True),
    )
    first, second = (
        (Adapter(hypernetwork=one), Strengths(0.7)),
        (Adapter(hypernetwork=two), Strengths(-0.4)),
    )
    plain = answer(base)
    with attach(base, [first, second]):
        both = answer(base)
    assert torch.equal(answer(base), plain)
    with attach(base, [second, first]):
        other_order = answer(base)
    torch.testing.assert_close(
        both, answer(rewritten(build(), [(one, 0.7), (two, -0.4)])), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        other_order, answer(rewritten(build(), [(two, -0.4), (one, 0.7)])), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(both, other_order, atol=1e-3)
    assert not torch.allclose(both, plain, atol=1e-2)


@pytest.mark.parametrize(
    "build", [lambda: random_base("sd1"), fallback_base], ids=["own", "diffusers"]
)
def test_beside_a_lora_on_the_same_layers(build):
    """The LoRA, folded in or still in training, reads what the networks have changed."""
    base = build()
    net = make(widths_of(base), 1)
    keys = list(base.select_layers("attention.kv"))
    layers = inject(
        {key: base.module(key) for key in keys}, lambda key: LoraSpec(rank=2, alpha=2.0), seed=0
    )
    with torch.no_grad():
        for parameter in layers.parameters.values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    exported = layers.export()
    with attach(base, [(Adapter(hypernetwork=net), Strengths())]):
        live = answer(base)
    layers.detach()
    with attach(base, [(exported, Strengths()), (Adapter(hypernetwork=net), Strengths())]):
        torch.testing.assert_close(answer(base), live, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", SPECS, ids=lambda s: "-".join(map(str, s["structure"])) + f"-{len(s)}"
)
@pytest.mark.parametrize("activation", ["mish", "prelu", "softplus", "hardsigmoid"])
def test_half_precision_follows(activation, shape, dtype):
    spec = Hypernetwork(pairs={}, activation=activation, **shape)
    network = Network(10, spec).eval()
    network.load_state_dict({n: t.float() for n, t in random_tensors(10, spec, seed=1).items()})
    x = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(2))
    half = network(x.to(dtype))
    assert half.dtype == dtype
    # By the size of the whole answer: a norm over ten values may enlarge what was rounded before.
    assert (half.float() - network(x)).norm() < 0.05 * network(x).norm()
    with torch.autocast("cpu", dtype=dtype):
        assert (network(x).float() - half.float()).norm() < 0.05 * half.float().norm()


def test_dropout_is_the_same_however_a_batch_is_cut():
    spec = Hypernetwork(pairs={}, structure=(1, 2, 1), activation="relu", dropout=(0, 0.5, 0))
    layer = torch.nn.Linear(10, 4)
    network = Network(10, spec)
    hung = LiveHypernetwork({"a.to_k": layer}, {10: (network, network)}, spec, values=())
    x, rng = torch.randn(4, 3, 10), Rng.for_step(0, 0).for_samples(torch.arange(4))
    plain = network(x)
    hung.begin_step(rng)
    whole = layer(x)
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        hung.begin_step(Rng(rng.keys[half]))
        parts.append(layer(x[half]))
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(whole, F.linear(x + plain, layer.weight, layer.bias), atol=1e-4)
    layer.eval()
    torch.testing.assert_close(layer(x), F.linear(x + plain, layer.weight, layer.bias))
    hung.detach()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


class Attending:
    """A base of nothing but projections: self-attention of some widths, text of another."""

    def __init__(self, family, own, text):
        self.family = family
        self.layers = {f"denoiser.{w}.attn1.to_k": torch.nn.Linear(w, 4, bias=False) for w in own}
        self.layers |= {"denoiser.x.attn2.to_k": torch.nn.Linear(text, 4, bias=False)}

    def select_layers(self, selector):
        return {
            k: m for k, m in self.layers.items() if selector == "attention.kv" or ".attn2." in k
        }


SD1, SD2 = ("sd1", (320, 640, 1280), 768), ("sd2", (320, 640, 1280), 1024)
SDXL = ("sdxl", (640, 1280), 2048)


@pytest.mark.parametrize(
    ("base", "widths", "family", "fits"),
    [
        (SD1, (320, 640, 768, 1280), "sd1", True),
        (SD1, (768,), "", True),
        (SD1, (320, 640, 768, 1024, 1280), "", True),
        (SDXL, (640, 1280), "", True),
        (SDXL, (320, 640, 768, 1280), "", False),
        (SD2, (320, 640, 768, 1280), "", False),
        (SD1, (1024,), "", False),
        (SDXL, (320, 640, 1280), "", False),
        (SDXL, (640, 1280), "sd1", False),
    ],
)
def test_another_familys_is_refused_by_its_widths(base, widths, family, fits):
    spec = Hypernetwork(pairs=dict.fromkeys(widths, (Perceptron({}), Perceptron({}))))
    if fits:
        check_fits(Attending(*base), spec, "h", family)
        return
    with pytest.raises(ModelError, match="hypernetwork h is for") as error:
        check_fits(Attending(*base), spec, "h", family)
    assert "\n" not in str(error.value) and ("family" in str(error.value))

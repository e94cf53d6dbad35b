"""Training of hypernetworks: against a plain loop in float64, in every setting, and what it
refuses.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from konomi.adapters.adapter import Adapter, Hypernetwork
from konomi.adapters.apply import Strengths, attach
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.formats.adapter_file import write_adapter
from konomi.methods.hypernetwork import HypernetworkConfig, initialise
from konomi.models.memory import enable_gradient_checkpointing
from konomi.models.modes import eval_mode
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

OPTIONS = [
    {"structure": (1, 2, 2, 1), "activation": "mish"},
    {"layer_norm": True, "activation": "leakyrelu", "activate_output": True},
    {"dropout": (0, 0.3, 0), "activation": "swish"},
    {
        "structure": (1, 1.5, 0.5, 1),
        "dropout": (0, 0.2, 0.2, 0),
        "layer_norm": True,
        "activation": "softsign",
    },
    {"layers": "cross", "activation": "linear"},
    {"shallow_penalty": 0.5, "activation": "prelu"},
    {"initialization": "kaiming_normal"},
]


def start(kit, config, family="sd1", total=3, precision=torch.float32, base=None, **optimizer):
    base = base or kit.base(family)
    recipe = kit.recipe(config, **optimizer)
    method = kit.method(base, recipe)
    base.place("cpu", precision)
    processes = Processes(0, 1, torch.device("cpu"))
    return (
        base,
        method,
        Trainer(method.plan(), recipe, processes=processes, total_steps=total, precision=precision),
    )


def train(trainer, kit, batch=None):
    return [event.loss for event in trainer.run(kit.stream(batch or kit.batch()), stop=Stop())]


def noise_pred(base, kit):
    examples = kit.examples(seed=9)
    conditioning = base.with_sizes(
        base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
    )
    with torch.no_grad():
        return base.predict(examples.latents.mean, torch.tensor([500, 20]), conditioning)


def plain_networks(pairs, layer_norm):
    """1, 2, 1 with mish as anyone would write it, in float64, with konomi's start."""
    made = {}
    for width, halves in pairs.items():
        for half, perceptron in zip("kv", halves):
            norms = (
                [nn.LayerNorm(2 * width), nn.LayerNorm(width)]
                if layer_norm
                else [nn.Identity(), nn.Identity()]
            )
            layers = [
                nn.Linear(width, 2 * width),
                nn.Mish(),
                norms[0],
                nn.Linear(2 * width, width),
                norms[1],
            ]
            network = nn.Sequential(*[x for x in layers if not isinstance(x, nn.Identity)]).double()
            network.load_state_dict(
                {n.removeprefix("linear."): t.double() for n, t in perceptron.tensors.items()}
            )
            made[width, half] = network
    return made


def patched(base, networks):
    """k = to_k(c + N_k(c)), v = to_v(c + N_v(c)) for every attention layer with networks of its
    width.
    """
    for module in base.denoiser.modules():
        for half in "kv":
            layer = getattr(module, f"to_{half}", None)
            if (
                layer is not None
                and (network := networks.get((layer.in_features, half))) is not None
            ):
                layer.forward = lambda c, layer=layer, network=network: F.linear(
                    c + network(c), layer.weight
                )


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.kernels
def test_losses_and_gradients_are_those_of_a_plain_loop_in_float64(kit, family, layer_norm):
    config = HypernetworkConfig(activation="mish", layer_norm=layer_norm)
    _, method, trainer = start(kit, config, family, total=3, clip_norm=0, weight_decay=0.0)
    networks = plain_networks(method.export().hypernetwork.pairs, layer_norm)
    rng = Rng.for_step(5, 0)
    method.loss(kit.batch(), rng).backward()
    ours = {name: p.grad.clone() for name, p in trainer.parameters.items()}
    for p in trainer.parameters.values():
        p.grad = None
    losses = train(trainer, kit)

    exact = kit.base(family)
    examples = kit.examples()
    with torch.no_grad():
        text = exact.encode_captions(examples.captions, kit.recipe(None).text)
    exact.place("cpu", torch.float64)
    patched(exact, networks)
    optimizer = torch.optim.AdamW(
        [p for n in networks.values() for p in n.parameters()], lr=1e-3, weight_decay=0.0
    )
    expected = []
    for step in range(3):
        loss = plain_loss(exact, examples, Rng.for_step(5, step), text)
        loss.backward()
        if step == 0:
            for (width, half), network in networks.items():
                for name, p in network.named_parameters():
                    # (Keys do not depend on a bias of the last layer: what differs there is
                    # rounding.)
                    one = ours[f"{width}.{half}.linear.{name}"].double()
                    assert (one - p.grad).norm() < 1e-4 * p.grad.norm() + 1e-8, name
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=2e-5)


def plain_loss(base, examples, rng, text):
    """Mean squared error to the noise or the velocity; chance alone is konomi's."""
    rng = rng.for_samples(examples.sample_ids)
    latents = (
        examples.latents.mean + examples.latents.std * rng.fork("latents").normal((4, 8, 8))
    ).double()
    noise = rng.fork("noise").normal((4, 8, 8)).double()
    timesteps = rng.fork("timestep").integers(0, 1000)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[timesteps].view(-1, 1, 1, 1)
    extra = None
    if text.pooled is not None:
        extra = {"text_embeds": text.pooled.double(), "time_ids": examples.sizes.double()}
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    noise_pred = base.denoiser(noisy, timesteps, text.states.double(), extra)[0]
    wanted = (
        noise
        if base.process.prediction == "epsilon"
        else kept.sqrt() * noise - (1 - kept).sqrt() * latents
    )
    return F.mse_loss(noise_pred, wanted)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
def test_options_export_what_was_trained(kit, options, family):
    base, method, trainer = start(kit, HypernetworkConfig(**options), family, learning_rate=1e-2)
    assert all(math.isfinite(loss) for loss in train(trainer, kit))
    with eval_mode(base.denoiser):
        live = noise_pred(base, kit)
    fresh = kit.base(family)
    original_base = noise_pred(fresh, kit)
    with attach(fresh, [(method.export(), Strengths())]):
        shown = noise_pred(fresh, kit)
    assert not torch.allclose(shown, original_base, atol=1e-4)
    torch.testing.assert_close(shown, live, rtol=1e-4, atol=1e-4)


def test_cross_has_networks_of_the_texts_width_alone(kit):
    _, method, _ = start(kit, HypernetworkConfig(layers="cross"), "sdxl")
    assert list(method.export().hypernetwork.pairs) == [64]
    _, method, _ = start(kit, HypernetworkConfig(), "sdxl")
    assert list(method.export().hypernetwork.pairs) == [32, 64]
    _, method, _ = start(kit, HypernetworkConfig(widths=(32,)), "sdxl")
    assert list(method.export().hypernetwork.pairs) == [32]


@pytest.mark.parametrize(
    "options", [{}, {"dropout": (0, 0.3, 0)}, {"shallow_penalty": 0.5}], ids=lambda o: "-".join(o)
)
@pytest.mark.kernels
def test_gradient_checkpointing_changes_nothing(kit, options):
    _, _, plain = start(kit, HypernetworkConfig(**options))
    expected = train(plain, kit)
    base, _, trainer = start(kit, HypernetworkConfig(**options))
    enable_gradient_checkpointing(base)
    assert train(trainer, kit) == pytest.approx(expected, rel=1e-5)
    for name, parameter in trainer.parameters.items():
        torch.testing.assert_close(parameter, plain.parameters[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.kernels
def test_half_precision_follows_float32(kit, precision):
    _, _, exact = start(kit, HypernetworkConfig(), total=6)
    _, _, trainer = start(kit, HypernetworkConfig(), total=6, precision=precision)
    assert train(trainer, kit) == pytest.approx(train(exact, kit), rel=0.03)
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())


@pytest.mark.kernels
def test_dropout_resumes_bit_for_bit_and_does_not_depend_on_passes(kit):
    import copy

    config = HypernetworkConfig(dropout=(0, 0.5, 0))
    _, _, whole = start(kit, config, total=4)
    expected = train(whole, kit)
    _, _, first = start(kit, config, total=4)
    run = first.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: step == 2)
    losses = [next(run).loss, next(run).loss]
    state = copy.deepcopy(first.state())
    run.close()
    _, _, second = start(kit, config, total=4)
    second.restore(state)
    assert losses + train(second, kit) == expected
    _, _, without = start(kit, HypernetworkConfig(), total=4)
    assert train(without, kit) != expected

    _, method, _ = start(kit, config)
    method.base.denoiser.train()
    batch, rng = kit.batch(), Rng.for_step(0, 0)
    one, two = (replace(batch.subject, **half(batch.subject, i)) for i in (0, 1))
    passes = (method.loss(Batch(subject=one), rng) + method.loss(Batch(subject=two), rng)) / 2
    torch.testing.assert_close(passes, method.loss(batch, rng), rtol=1e-5, atol=1e-6)


def half(examples, index):
    """Fields of one of two examples."""
    latents = examples.latents
    return {
        "names": examples.names[index : index + 1],
        "sample_ids": examples.sample_ids[index : index + 1],
        "captions": examples.captions[index : index + 1],
        "sizes": examples.sizes[index : index + 1],
        "latents": type(latents)(latents.mean[index : index + 1], latents.std[index : index + 1]),
    }


def test_the_shallow_penalty_is_the_mean_square_of_what_is_added_in_the_first_quarter(kit):
    _, method, _ = start(
        kit, HypernetworkConfig(shallow_penalty=3.0, initialization="xavier_normal")
    )
    plain = start(kit, HypernetworkConfig(initialization="xavier_normal"))[1]
    batch, rng = kit.batch(), Rng.for_step(0, 0)
    # Seven attention pairs: 2 down, 1 middle, 4 up; a quarter of fourteen layers is four, those of
    # the way down.
    blocks = [
        f"denoiser.down_blocks.{i}.attentions.0.transformer_blocks.0.attn{j}"
        for i in (0, 1)
        for j in (1, 2)
    ]
    assert method.shallow == {f"{block}.{p}" for block in blocks for p in ("to_k", "to_v")}
    added, handles = [], []
    for key in method.shallow:
        layer = plain.base.module(key)
        network = plain.networks.pairs[layer.in_features][key.endswith("to_v")]

        def note(_, inputs, network=network):
            added.append(network(inputs[0]).square().mean().item())

        # Before the method's own hook: the states as they come.
        handles.append(layer.register_forward_pre_hook(note, prepend=True))
    expected = plain.loss(batch, rng).item()
    assert method.loss(batch, rng).item() == pytest.approx(
        expected + 3.0 * sum(added) / len(added), rel=1e-4
    )
    assert len(added) == 8 and method.loss(batch, rng).requires_grad


@pytest.mark.parametrize(
    "initialization", ["normal", "xavier_uniform", "xavier_normal", "kaiming_uniform"]
)
@pytest.mark.parametrize("activation", ["relu", "leakyrelu"])
def test_starts_have_the_spread_of_their_papers(initialization, activation):
    network = nn.Sequential(nn.Linear(400, 800), nn.LayerNorm(800))
    initialise(network, initialization, activation, torch.Generator().manual_seed(0))
    slope = 0.01 if activation == "leakyrelu" else 0.0
    spread = {
        "normal": 0.01,
        "xavier_uniform": math.sqrt(2 / 1200),
        "xavier_normal": math.sqrt(2 / 1200),
        "kaiming_uniform": math.sqrt(2 / (1 + slope**2) / 400),
    }[initialization]
    assert network[0].weight.std().item() == pytest.approx(spread, rel=0.02)
    assert network[1].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not network[0].bias.any() and not network[1].bias.any()


def test_going_on_from_a_file(kit, tmp_path):
    config = HypernetworkConfig(activation="mish")
    _, method, trainer = start(kit, config, learning_rate=1e-2)
    train(trainer, kit)
    path = tmp_path / "h.pt"
    write_adapter(method.export(), path)
    _, again, _ = start(kit, replace(config, start=str(path)))
    ours, theirs = again.export().hypernetwork.pairs, method.export().hypernetwork.pairs
    assert all(
        torch.equal(one.tensors[n], t)
        for width in theirs
        for one, other in zip(ours[width], theirs[width])
        for n, t in other.tensors.items()
    )
    # What the recipe leaves at its default is the file's.
    _, plain, _ = start(kit, HypernetworkConfig(start=str(path)))
    assert plain.export().hypernetwork.activation == "mish"
    with pytest.raises(
        RecipeError, match=r"has activation 'mish', the recipe 'tanh'. Leave method.activation out"
    ):
        start(kit, HypernetworkConfig(activation="tanh", start=str(path)))
    with pytest.raises(RecipeError, match=r"has structure 1,2,1, the recipe 1,2,2,1"):
        start(kit, replace(config, structure=(1, 2, 2, 1), start=str(path)))
    with pytest.raises(
        RecipeError, match=r"has networks of width 16, 32; .* none of 16\. Set method.widths"
    ):
        start(kit, replace(config, start=str(path)), "sdxl")
    # When the method is made, so `check` says it as well, before anything is loaded or encoded.
    base = kit.base("sdxl", lazy=True)
    for odd in (replace(config, start=str(path)), HypernetworkConfig(widths=(7,))):
        with pytest.raises(RecipeError, match=r"method\.(start|widths)"):
            kit.method(base, kit.recipe(odd))
    assert base.loaded_parts() == ()
    from konomi.adapters.kinds import LowRank

    key = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    lora = Adapter(layers={key: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)}, family="sd1")
    write_adapter(lora, tmp_path / "lora.safetensors")
    with pytest.raises(RecipeError, match="is not a hypernetwork"):
        start(kit, replace(config, start=str(tmp_path / "lora.safetensors")))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"structure": (1, 2)}, r"method.structure is 1,2; it begins and ends with 1"),
        ({"structure": (2, 1)}, r"method.structure is 2,1"),
        ({"dropout": (0, 0.3)}, r"method.dropout is 0,0.3; it takes 3 numbers.* 0,0.3,0\."),
        ({"dropout": (0, 0.3, 0.3)}, r"the first and the last 0"),
        ({"widths": (999,)}, r"method.widths names 999; .* attention of width 16, 32\."),
        ({"widths": (16,), "layers": "cross"}, r"method.layers = 'cross', .* of width 32\."),
    ],
)
def test_what_makes_no_sense_gets_its_line(kit, options, match):
    with pytest.raises(RecipeError, match=match) as error:
        start(kit, HypernetworkConfig(**options))
    assert "\n" not in str(error.value)


def test_the_export_says_how_it_was_made(kit):
    _, method, _ = start(
        kit, HypernetworkConfig(initialization="xavier_uniform", dropout=(0, 0, 0))
    )
    adapter = method.export()
    spec = adapter.hypernetwork
    assert isinstance(spec, Hypernetwork) and adapter.family == "sd1"
    assert spec.facts == {"weight_initialization": "XavierUniform"} and spec.dropout == ()

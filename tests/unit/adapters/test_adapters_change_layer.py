"""Layers that train a closed form: their products and gradients against autograd in float64,
whichever way is taken inside.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from konomi.adapters.delta import delta
from konomi.adapters.kinds import LayerSettings, tensors_of
from konomi.adapters.kinds.change_layer import ChangeLayer
from konomi.adapters.kinds.magnitude import lengths_of
from konomi.adapters.layers import inject
from konomi.diffusion.random import Rng
from konomi.errors import ModelError
from konomi.methods.lora_settings import ALGORITHMS

FORMS = ("loha", "lokr", "ia3", "full")


def layer_of(algorithm: str, *, weight_dtype: torch.dtype = torch.float32, **options: object):
    torch.manual_seed(0)
    base = nn.Linear(64, 96).requires_grad_(False).to(weight_dtype)
    settings = LayerSettings(2, 3.0, **options)  # type: ignore[arg-type]
    layer = ALGORITHMS[algorithm].spec(settings).layer("denoiser.x", base, seed=1)
    assert isinstance(layer, ChangeLayer)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return layer


def reference(layer: ChangeLayer, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(y, gradient of x, gradients of the parameters) of sum(y^2), in float64."""
    leaves = {n: p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    x = x.detach().double().requires_grad_()
    base, settings = layer.base, layer.spec.settings
    weight, bias = base.weight.double(), base.bias.double()
    tensors = {name: value for name, value in leaves.items() if name != "magnitude"}
    update = replace(layer.update, **tensors)
    weight = weight + update.delta(weight)
    if update.bias is not None:
        bias = bias + update.bias
    if layer.magnitude is None:
        y = x @ weight.t() + bias
    else:
        # No gradient through the lengths (DoRA, section 4.3).
        gain = leaves["magnitude"] / lengths_of(weight, settings.dora_axis).detach()
        y = (
            (x @ weight.t()) * gain.flatten() + bias
            if settings.dora_axis == "output"
            else (x * gain.flatten()) @ weight.t() + bias
        )
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("dora", ["", "output", "input"])
@pytest.mark.parametrize("algorithm", FORMS)
def test_products_and_gradients_are_those_of_the_closed_form(
    algorithm: str, dora: str, rows: int
) -> None:
    if dora and "dora" not in ALGORITHMS[algorithm].uses:
        return
    layer = layer_of(algorithm, dora=bool(dora), dora_axis=dora or "output")
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    y, grad_x, grads = reference(layer, x)
    answer = layer(x)
    torch.testing.assert_close(answer.double(), y, rtol=1e-5, atol=1e-5)
    answer.square().sum().backward()
    assert x.grad is not None
    for mine, exact in [
        (x.grad, grad_x),
        *((p.grad, grads[n]) for n, p in layer.named_parameters()),
    ]:
        scale = exact.abs().max()
        torch.testing.assert_close(mine.double() / scale, exact / scale, rtol=1e-4, atol=1e-5)
    exported = layer.export()
    shown = x.detach() @ (layer.base.weight + delta(exported, layer.base.weight)).t()
    bias = layer.base.bias if exported.bias is None else layer.base.bias + exported.bias
    torch.testing.assert_close(shown + bias, answer.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", FORMS)
def test_a_small_change_is_not_lost_in_the_rounding_of_a_small_type(algorithm: str) -> None:
    layer = layer_of(algorithm, weight_dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.05)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    y, _, grads = reference(layer, x)
    plain = layer.base(x).double()
    answer = layer(x.requires_grad_())
    assert answer.dtype == torch.bfloat16
    wanted = y - reference_base(layer, x)
    if wanted.abs().max() > 0.02:
        torch.testing.assert_close(answer.double() - plain, wanted, rtol=0.1, atol=0.03)
    answer.square().sum().backward()
    for name, parameter in layer.named_parameters():
        scale = grads[name].abs().max()
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        torch.testing.assert_close(
            parameter.grad / scale, (grads[name] / scale).float(), rtol=0.05, atol=0.03
        )


def reference_base(layer: ChangeLayer, x: Tensor) -> Tensor:
    return x.double() @ layer.base.weight.double().t() + layer.base.bias.double()


def test_goes_on_with_the_scale_of_the_file_and_refuses_other_parts() -> None:
    file = layer_of("loha", dora=True).export()
    again = layer_of("loha", dora=True)
    again.load(replace(file, alpha=6.0))
    weight = again.base.weight
    torch.testing.assert_close(
        delta(again.export(), weight), delta(replace(file, alpha=6.0), weight)
    )
    assert "magnitude" not in tensors_of(again.update)
    with pytest.raises(ModelError, match="is no lokr in the file"):
        layer_of("lokr").load(file)
    with pytest.raises(ModelError, match="disagree about DoRA"):
        layer_of("loha").load(file)
    with pytest.raises(ModelError, match="is made of"):
        layer_of("full").load(replace(layer_of("full").export(), bias=None))


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full"])
def test_an_update_beyond_its_norm_is_scaled_back_once(algorithm: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(64, 96).requires_grad_(False)
    layers = {
        largest: inject(
            {"denoiser.x": copy.deepcopy(base)},
            lambda key, most=largest: ALGORITHMS[algorithm].spec(
                LayerSettings(2, 3.0, max_norm=most)
            ),
            seed=1,
        )
        for largest in (0.0, 0.5, 1e3)
    }
    for one in layers.values():
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in one.parameters.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    free, bounded, wide = (
        delta(one.export().layers["denoiser.x"], base.weight) for one in layers.values()
    )
    assert float(free.norm()) > 1 and torch.equal(wide, free)
    # sd-scripts: the whole update times largest / norm.
    torch.testing.assert_close(bounded, free * (0.5 / free.norm()), rtol=1e-4, atol=1e-6)
    layers[0.5].begin_step(Rng.for_step(0, 0).for_samples(torch.arange(1)))
    once = {name: value.clone() for name, value in layers[0.5].parameters.items()}
    layers[0.5].begin_step(Rng.for_step(0, 1).for_samples(torch.arange(1)))
    assert all(torch.equal(once[n], p) for n, p in layers[0.5].parameters.items())
    again = delta(layers[0.5].export().layers["denoiser.x"], base.weight)
    torch.testing.assert_close(again, bounded, rtol=1e-5, atol=1e-7)

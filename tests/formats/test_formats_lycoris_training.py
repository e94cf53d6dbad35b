"""LyCORIS as judge of what is trained: the same tensors mean the same change, its layers read ours
and ours read theirs, and a step's gradients are the same.
"""

import pytest
import torch
from torch import Tensor, nn

from konomi.adapters.delta import delta
from konomi.adapters.kinds import LayerSettings
from konomi.adapters.kinds.kronecker import LokrSettings, sizes_of_factors
from konomi.adapters.kinds.rescale import Ia3Settings
from konomi.adapters.layers import inject
from konomi.formats.layers import layer_from_parts
from konomi.methods.lora_settings import ALGORITHMS

pytest.importorskip("lycoris")
KEY = "denoiser.layer"
CASES = {
    "loha": ("loha", None, {}),
    "lokr": ("lokr", LokrSettings(), {}),
    "lokr factor": ("lokr", LokrSettings(factor=2), {"factor": 2}),
    "lokr both": (
        "lokr",
        LokrSettings(factor=6, decompose_both=True),
        {"factor": 6, "decompose_both": True},
    ),
    "lokr full": ("lokr", LokrSettings(full_matrix=True), {"full_matrix": True}),
    "lokr tucker": ("lokr", LokrSettings(tucker=True, factor=2), {"use_tucker": True, "factor": 2}),
    "ia3": ("ia3", None, {}),
    "ia3 input": ("ia3", Ia3Settings(on_input=True), {"train_on_input": True}),
    "full": ("full", None, {}),
}


def module_of(base: nn.Module, algorithm: str, **options: object) -> nn.Module:
    from lycoris.modules.full import FullModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    modules = {"loha": LohaModule, "lokr": LokrModule, "ia3": IA3Module, "full": FullModule}
    module: nn.Module = modules[algorithm]("x", base, 1.0, 2, 3.0, **options)
    return module


def base_of(sort: str) -> nn.Module:
    torch.manual_seed(0)
    if sort == "linear":
        return nn.Linear(24, 36).requires_grad_(False)
    size = 3 if sort == "conv" else 1
    return nn.Conv2d(24, 36, size, padding=size // 2).requires_grad_(False)


@pytest.mark.parametrize("sort", ["linear", "conv", "point"])
@pytest.mark.parametrize("case", CASES)
def test_lycoris_computes_and_learns_the_same(case: str, sort: str) -> None:
    algorithm, own, options = CASES[case]
    base, theirs_base = base_of(sort), base_of(sort)
    settings = LayerSettings(2, 3.0, own=own)
    spec = ALGORITHMS[algorithm].spec(settings)
    layers = inject({KEY: base}, lambda key: spec, seed=1)
    theirs = module_of(theirs_base, algorithm, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layers.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    parts = layers.export().layers[KEY].to_parts(norm=False)
    wanted = theirs.state_dict()
    assert {name: tuple(t.shape) for name, t in parts.items()} == {
        name: tuple(t.shape) for name, t in wanted.items()
    }
    x = torch.randn(2, 24, generator=generator) if sort == "linear" else torch.randn(2, 24, 5, 5)
    own_names = {name.partition(".")[0] for name in theirs.state_dict()}
    assert own_names == parts.keys()
    change = _theirs(theirs, algorithm, parts, theirs_base)
    torch.testing.assert_close(
        delta(layers.export().layers[KEY], base.weight), change.detach(), rtol=1e-5, atol=1e-6
    )
    if algorithm != "full":  # Before it is put on a base, its file would be less the base.
        theirs_file = {name: value.detach() for name, value in theirs.state_dict().items()}
        again = delta(layer_from_parts(theirs_file), base.weight)
        torch.testing.assert_close(again, change.detach(), rtol=1e-5, atol=1e-6)
    y = base(x)
    y.square().sum().backward()
    bias = theirs_base.bias
    if algorithm == "full":
        bias = bias + theirs.bias
    compute = nn.functional.linear if sort == "linear" else nn.functional.conv2d
    kernel = {} if sort == "linear" else {"padding": base.padding}
    answer = compute(x, theirs_base.weight + change, bias, **kernel)
    torch.testing.assert_close(y, answer, rtol=1e-5, atol=1e-5)
    answer.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    names = {"loha": "hada_", "lokr": "lokr_"}
    for name, parameter in layers.parameters.items():
        name = name.removeprefix(f"{KEY}.")
        judged = grads[names.get(algorithm, "") + name]
        assert judged is not None and parameter.grad is not None
        scale = float(judged.abs().max())
        torch.testing.assert_close(
            parameter.grad / scale, judged.reshape(parameter.shape) / scale, rtol=1e-5, atol=1e-5
        )


def _theirs(module: nn.Module, algorithm: str, parts: dict[str, Tensor], base: nn.Module) -> Tensor:
    """dW of LyCORIS' layer, with our tensors in it; its parameters have gradients."""
    own = {"diff": "weight", "diff_b": "bias"} if algorithm == "full" else {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            part = next((part for part, field in own.items() if field == name), name)
            parameter.copy_(parts[part].reshape(parameter.shape))
    if algorithm in ("ia3", "full"):
        change: Tensor = module.get_diff_weight()[0]
    else:
        change = module.get_weight(base.weight.shape)
    return change


def test_sides_of_weights_are_divided_as_lycoris_divides_them() -> None:
    from lycoris.functional import factorization

    for size in (*range(1, 130), 320, 640, 768, 1280, 2560, 5120, 10240):
        for factor in (-1, 1, 2, 4, 8, 16, 6, 12, 1000):
            assert sizes_of_factors(size, factor) == factorization(size, factor), (size, factor)

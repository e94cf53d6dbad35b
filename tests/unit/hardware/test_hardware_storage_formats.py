"""Frozen weights kept in half precision, beside the same layers with rounded weights: the same
bits.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import inject
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.random import Rng
from konomi.hardware import storage_formats
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.random_base import random_base
from konomi.models.unet_layers import Convolution, Linear

HALVES = (torch.bfloat16, torch.float16)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answer_and_gradients(compute: Any, *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    answer = compute(*leaves)
    (answer * torch.linspace(-1, 1, answer.numel()).view(answer.shape)).sum().backward()
    return [answer.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_layers_are_those_of_rounded_weights(dtype: torch.dtype) -> None:
    x, bias, kept = drawn(2, 5, 6), drawn(7, seed=1), drawn(7, 6, seed=2).to(dtype)
    assert_same(
        answer_and_gradients(lambda x, b: storage_formats.linear(x, kept, b), x, bias),
        answer_and_gradients(lambda x, b: F.linear(x, kept.float(), b), x, bias),
    )
    x, kept = drawn(2, 5, 9, 8), drawn(7, 5, 3, 3, seed=2).to(dtype)
    window = ((2, 1), (1, 0), (1, 2))
    assert_same(
        answer_and_gradients(lambda x, b: storage_formats.conv2d(x, kept, b, *window), x, bias),
        answer_and_gradients(lambda x, b: F.conv2d(x, kept.float(), b, *window), x, bias),
    )


def prediction(base: LatentDiffusion) -> Any:
    config = base.source.configs["unet"]
    pooled = None
    if base.family == "sdxl":
        pooled = drawn(
            1,
            config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"],
        )
    text = Conditioning(drawn(1, 77, config["cross_attention_dim"], seed=3), pooled)
    text = base.with_sizes(text, torch.full((1, 6), 64))
    return lambda latents: base.predict(latents, torch.tensor([301]), text)


def rounded(base: LatentDiffusion, dtype: torch.dtype) -> LatentDiffusion:
    for parameter in base.denoiser.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(dtype).float()
    return base


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_base_computes_as_with_rounded_weights(family: str, loaded: bool) -> None:
    ours = random_base(family)
    if loaded:
        assert ours.denoiser
    ours.place("cpu", torch.float32, storage=torch.bfloat16)
    formats = {parameter.dim() > 1: parameter.dtype for parameter in ours.denoiser.parameters()}
    assert formats == {True: torch.bfloat16, False: torch.float32}
    assert {p.dtype for e in ours.text_encoders.values() for p in e.parameters()} == {torch.float32}
    theirs = rounded(random_base(family), torch.bfloat16)
    latents = drawn(1, 4, 8, 8)
    assert_same(
        answer_and_gradients(prediction(ours), latents),
        answer_and_gradients(prediction(theirs), latents),
    )


@pytest.mark.parametrize(
    "spec", [LoraSpec(2, 2.0), LoraSpec(2, 2.0, dora=True), LoraSpec(2, 2.0, rank_dropout=0.5)]
)
def test_low_rank_layers_on_kept_weights(spec: LoraSpec) -> None:
    """On linear layers and convolutions, of few rows and of many (where the update is merged)."""
    found = []
    for keep in (True, False):
        torch.manual_seed(4)
        modules: dict[str, Any] = {
            "a": Linear(16, 8),
            "b": Convolution(6, 8, 3, padding=1),
            "c": Convolution(6, 8, 1),
        }
        for module in modules.values():
            module.weight.data = (
                module.weight.data.bfloat16() if keep else module.weight.data.bfloat16().float()
            )
        layers = inject(modules, lambda key: spec, seed=1)
        for parameter in layers.parameters.values():
            parameter.data = parameter.data + 0.1
        layers.begin_step(Rng.for_step(3, 1).for_samples(torch.tensor([5])))
        for key, shape in (
            ("a", (1, 3, 16)),
            ("a", (1, 99, 16)),
            ("b", (1, 6, 4, 4)),
            ("c", (1, 6, 9, 9)),
        ):
            found.append(answer_and_gradients(modules[key], drawn(*shape)))
        found.append([p.grad for p in layers.parameters.values() if p.grad is not None])
    half = len(found) // 2
    for ours, theirs in zip(found[:half], found[half:], strict=True):
        assert_same(ours, theirs)


def test_only_the_small_form_is_kept_for_the_way_back() -> None:
    base = random_base("sd1")
    base.place("cpu", torch.float32, storage=torch.float16)
    kept: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        prediction(base)(drawn(1, 4, 8, 8).requires_grad_())
    weights = {
        tuple(parameter.shape) for parameter in base.denoiser.parameters() if parameter.dim() > 1
    }
    weights |= {shape[::-1] for shape in weights if len(shape) == 2}
    formats = {tensor.dtype for tensor in kept if tuple(tensor.shape) in weights}
    assert formats == {torch.float16}


def test_what_trains_and_what_computes_in_half_precision_stays_as_it_is() -> None:
    trained = random_base("sd1")
    trained.place("cpu", torch.float32, float32_parts=("denoiser",), storage=torch.bfloat16)
    assert {parameter.dtype for parameter in trained.denoiser.parameters()} == {torch.float32}

"""Attention in whichever way is faster, against float64."""

import pytest
import torch
from torch import Tensor

from konomi.models import unet_layers
from konomi.models.unet_layers import attend


def inputs(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def answer_and_gradients(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_(True) for tensor in tensors]
    answer = attend(*leaves)
    (
        answer.double()
        * torch.linspace(-1, 1, answer.numel(), dtype=torch.float64).view(answer.shape)
    ).sum().backward()
    return [answer.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("keys", [7, 77])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_answer_and_gradients_are_those_of_float64(
    keys: int, dtype: torch.dtype, tolerance: float
) -> None:
    tensors = inputs(64, keys)
    query, key, value = (tensor.double().requires_grad_(True) for tensor in tensors)
    wanted = torch.einsum(
        "bhnt,bhtc->bhnc", (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1), value
    )
    (
        wanted * torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view(wanted.shape)
    ).sum().backward()
    expected = [wanted.detach(), query.grad, key.grad, value.grad]
    found = answer_and_gradients(tensors, dtype)
    assert len(found) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs is not None
        assert ours.dtype == dtype
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_many_positions_are_left_to_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose memory does not grow with the square of positions; so is all that needs no gradient,
    and float32.
    """
    fused: list[tuple[int, torch.dtype]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        fused.append((query.shape[-2], query.dtype))
        return real(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(unet_layers, "PLAIN_PRODUCTS", 64 * 64)
    for queries in (64, 65):
        answer_and_gradients(inputs(queries, 64), torch.bfloat16)
    answer_and_gradients(inputs(64, 64), torch.float32)
    with torch.no_grad():
        attend(*(tensor.bfloat16() for tensor in inputs(63, 64)))
    assert fused == [(65, torch.bfloat16), (64, torch.float32), (63, torch.bfloat16)]

"""The hand-written gradients against autograd's own, in float64, and what precision leaves of
small updates.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from konomi.adapters.kinds.low_rank_product import low_rank_conv, low_rank_linear, merging_pays
from konomi.adapters.kinds.window import Window

SCALE = 0.7


def draw(*shape: int, grad: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)
    )


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("lead", [(5,), (2, 3), (1, 2, 3)])
def test_linear(merge: bool, lead: tuple[int, ...]) -> None:
    x, down, up = draw(*lead, 6, grad=True), draw(3, 6, grad=True), draw(7, 3, grad=True)
    weight, bias = draw(7, 6), draw(7)

    def layer(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return low_rank_linear(x, weight, bias, down, up, scale=SCALE, merge=merge)

    torch.testing.assert_close(layer(x, down, up), F.linear(x, weight + SCALE * up @ down, bias))
    assert torch.autograd.gradcheck(layer, (x, down, up))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "window"),
    [
        (1, Window((1, 1), (0, 0), (1, 1))),
        (1, Window((2, 2), (0, 0), (1, 1))),
        (3, Window((1, 1), (1, 1), (1, 1))),
        (3, Window((2, 2), (1, 0), (1, 1))),
        (3, Window((1, 1), (2, 2), (2, 2))),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conv(
    merge: bool, batch: int, kernel: int, window: Window, layout: torch.memory_format
) -> None:
    x = draw(batch, 3, 5, 4).to(memory_format=layout).requires_grad_()
    down, up = draw(2, 3, kernel, kernel, grad=True), draw(4, 2, 1, 1, grad=True)
    weight, bias = draw(4, 3, kernel, kernel), draw(4)

    def layer(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return low_rank_conv(x, weight, bias, down, up, window, scale=SCALE, merge=merge)

    full = weight + SCALE * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    wanted = F.conv2d(x, full, bias, window.stride, window.padding, window.dilation)
    torch.testing.assert_close(layer(x, down, up), wanted)
    assert torch.autograd.gradcheck(layer, (x, down, up))


def test_strided_input_and_gradient() -> None:
    x, down, up = draw(2, 6, 5, grad=True), draw(3, 6, grad=True), draw(7, 3, grad=True)
    weight = draw(7, 6)
    out = low_rank_linear(x.transpose(1, 2), weight, None, down, up, scale=SCALE, merge=False)
    got = torch.autograd.grad(out.sum(), (x, down, up))
    plain = x.transpose(1, 2) @ (weight + SCALE * up @ down).t()
    for mine, theirs in zip(got, torch.autograd.grad(plain.sum(), (x, down, up)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_input_without_gradient_gets_none_and_the_weight_never() -> None:
    x, down, up = draw(4, 6), draw(3, 6, grad=True), draw(7, 3, grad=True)
    weight = draw(7, 6)
    low_rank_linear(x, weight, None, down, up, scale=1.0).sum().backward()
    assert x.grad is None and weight.grad is None
    assert down.grad is not None and up.grad is not None


def test_only_the_input_and_thin_products_are_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x, down, up = draw(512, 64, grad=True), draw(4, 64, grad=True), draw(96, 4, grad=True)
    weight = draw(96, 64)
    for merge in (True, False):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            low_rank_linear(x, weight, None, down, up, scale=1.0, merge=merge)
        own = {t.data_ptr() for t in (x, down, up, weight)}
        extra = sum(t.numel() for t in kept if t.data_ptr() not in own)
        assert extra <= 4 * 512, "beyond x only the [R, N] hidden state is kept"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_survive_half_precision(dtype: torch.dtype) -> None:
    """An update of a thousandth of the weight is below half a unit of most bfloat16 weights: a
    merge would lose it.
    """
    x = draw(64, 128, dtype=dtype)
    weight, down, up = (
        draw(256, 128, dtype=dtype),
        draw(8, 128, dtype=torch.float32),
        draw(256, 8, dtype=torch.float32),
    )
    up = up * 3e-4
    assert not merging_pays(10**9, 128, 256, dtype)
    with_update = low_rank_linear(x, weight, None, down, up, scale=1.0).double()
    without = F.linear(x, weight).double()
    change = x.double() @ (up.double() @ down.double()).t()
    got = with_update - without
    # Single values are rounded with y; their projection on the true change shows what is left of
    # it on average.
    assert 0.9 < (got * change).sum() / (change * change).sum() < 1.1


def test_gradients_of_float32_masters_under_bfloat16() -> None:
    x, weight = draw(64, 32, dtype=torch.bfloat16), draw(48, 32, dtype=torch.bfloat16)
    down, up = (
        draw(4, 32, dtype=torch.float32, grad=True),
        draw(48, 4, dtype=torch.float32, grad=True),
    )
    low_rank_linear(x, weight, None, down, up, scale=SCALE).float().square().sum().backward()
    exact_down, exact_up = (t.detach().double().requires_grad_() for t in (down, up))
    (x.double() @ (weight.double() + SCALE * exact_up @ exact_down).t()).square().sum().backward()
    for mine, theirs in ((down.grad, exact_down.grad), (up.grad, exact_up.grad)):
        assert mine is not None and theirs is not None and mine.dtype == torch.float32
        assert (mine.double() - theirs).norm() / theirs.norm() < 0.02


def test_the_rule() -> None:
    assert merging_pays(4096, 320, 320, torch.float32)
    assert not merging_pays(64, 1280, 1280, torch.float32)

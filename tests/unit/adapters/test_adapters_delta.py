"""Closed forms, in float64, written out another way than the code does."""

import numpy as np
import pytest
import torch

from konomi.adapters.apply import bias_delta, delta
from konomi.adapters.kinds import Difference, Hadamard, Kronecker, LayerUpdate, LowRank, Rescale
from konomi.errors import ModelError

OUT, IN, K, R = 6, 4, 3, 2


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(got: torch.Tensor, wanted: object) -> None:
    torch.testing.assert_close(got, torch.as_tensor(np.asarray(wanted)), rtol=1e-12, atol=1e-12)


def test_low_rank_linear() -> None:
    down, up = draw(R, IN), draw(OUT, R)
    wanted = np.zeros((OUT, IN))
    for r in range(R):
        wanted += np.outer(up[:, r], down[r]) * 0.5 / R
    close(delta(LowRank(down, up, alpha=0.5), draw(OUT, IN)), wanted)


@pytest.mark.parametrize("kernel", [1, K])
def test_low_rank_convolution_is_one_after_the_other(kernel: int) -> None:
    down, up, x = draw(R, IN, kernel, kernel), draw(OUT, R, 1, 1), draw(2, IN, 7, 7)
    weight = draw(OUT, IN, kernel, kernel)
    change = delta(LowRank(down, up, alpha=3.0), weight)
    twice = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, down), up) * 3.0 / R
    torch.testing.assert_close(torch.nn.functional.conv2d(x, change), twice)


def test_low_rank_factors_without_kernel_axes_fit_pointwise_convolutions_and_back() -> None:
    down, up = draw(R, IN), draw(OUT, R)
    flat = delta(LowRank(down, up, alpha=1.0), draw(OUT, IN))
    assert delta(LowRank(down, up, alpha=1.0), draw(OUT, IN, 1, 1)).shape == (OUT, IN, 1, 1)
    four = LowRank(down[:, :, None, None], up[:, :, None, None], alpha=1.0)
    assert torch.equal(delta(four, draw(OUT, IN)), flat)


def test_tucker_is_three_convolutions() -> None:
    down, mid, up, x = draw(R, IN, 1, 1), draw(R, R, K, K), draw(OUT, R, 1, 1), draw(2, IN, 7, 7)
    change = delta(LowRank(down, up, alpha=1.0, mid=mid), draw(OUT, IN, K, K))
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv(x, change), conv(conv(conv(x, down), mid), up) / R)


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("kernel", [(), (K, K)])
def test_dora_has_the_learned_lengths(axis: str, kernel: tuple[int, ...]) -> None:
    weight = draw(OUT, IN, *kernel)
    ones = [1] * len(kernel)
    magnitude = draw(OUT, 1, *ones).abs() if axis == "output" else draw(1, IN, *ones).abs()
    plain = LowRank(draw(R, IN, *kernel), draw(OUT, R, *ones), alpha=1.0)
    update = LowRank(plain.down, plain.up, plain.alpha, magnitude=magnitude)
    tuned = (weight + delta(update, weight)).numpy()
    direction = (weight + delta(plain, weight)).numpy()
    for index in range(OUT if axis == "output" else IN):
        row, before = (t[index] if axis == "output" else t[:, index] for t in (tuned, direction))
        length = np.sqrt((row**2).sum())
        close(torch.as_tensor(length), magnitude.flatten()[index])
        close(torch.as_tensor(row / length), before / np.sqrt((before**2).sum()))


def test_dora_leaves_a_dead_row_at_zero() -> None:
    weight = draw(OUT, IN)
    weight[2] = 0
    update = LowRank(
        draw(R, IN),
        torch.zeros(OUT, R, dtype=torch.float64),
        alpha=1.0,
        magnitude=draw(OUT, 1).abs(),
    )
    change = delta(update, weight)
    assert torch.isfinite(change).all()
    assert not change[2].any()


@pytest.mark.parametrize("kernel", [(), (K, K)])
def test_hadamard(kernel: tuple[int, ...]) -> None:
    weight = draw(OUT, IN, *kernel)
    columns = weight[0].numel()
    a1, b1, a2, b2 = draw(OUT, R), draw(R, columns), draw(OUT, R, seed=1), draw(R, columns, seed=1)
    wanted = (a1.numpy() @ b1.numpy()) * (a2.numpy() @ b2.numpy()) * 4.0 / R
    close(delta(Hadamard(a1, b1, a2, b2, alpha=4.0), weight), wanted.reshape(weight.shape))


def test_hadamard_with_cores() -> None:
    a1, b1, a2, b2 = draw(R, OUT), draw(R, IN), draw(R, OUT, seed=1), draw(R, IN, seed=1)
    t1, t2 = draw(R, R, K, K), draw(R, R, K, K, seed=1)
    wanted = np.zeros((OUT, IN, K, K))
    for o in range(OUT):
        for i in range(IN):
            first = sum(t1[r, s] * a1[r, o] * b1[s, i] for r in range(R) for s in range(R))
            second = sum(t2[r, s] * a2[r, o] * b2[s, i] for r in range(R) for s in range(R))
            wanted[o, i] = (first * second / R).numpy()
    close(delta(Hadamard(a1, b1, a2, b2, 1.0, t1, t2), draw(OUT, IN, K, K)), wanted)


def test_kronecker_of_full_factors_has_scale_one() -> None:
    w1, w2 = draw(2, 2), draw(3, 2)
    close(delta(Kronecker(w1=w1, w2=w2, alpha=7.0), draw(OUT, IN)), np.kron(w1.numpy(), w2.numpy()))


def test_kronecker_of_products() -> None:
    a1, b1, a2, b2 = draw(2, 1), draw(1, 2), draw(3, 1), draw(1, 2, seed=1)
    wanted = np.kron(a1.numpy() @ b1.numpy(), a2.numpy() @ b2.numpy()) * 0.5
    close(delta(Kronecker(w1_a=a1, w1_b=b1, w2_a=a2, w2_b=b2, alpha=0.5), draw(OUT, IN)), wanted)


@pytest.mark.parametrize("form", ["flat", "full", "core"])
def test_kronecker_convolutions(form: str) -> None:
    w1, weight = draw(2, 2), draw(OUT, IN, K, K)
    if form == "flat":
        a, b = draw(3, R), draw(R, 2 * K * K)
        update, w2 = Kronecker(w1=w1, w2_a=a, w2_b=b, alpha=1.0), (a @ b).view(3, 2, K, K) / R
    elif form == "full":
        w2 = draw(3, 2, K, K)
        update = Kronecker(w1=w1, w2=w2)
    else:
        a, b, core = draw(R, 3), draw(R, 2), draw(R, R, K, K)
        w2 = (
            sum(
                core[r, s] * torch.outer(a[r], b[s])[:, :, None, None]
                for r in range(R)
                for s in range(R)
            )
            / R
        )
        update = Kronecker(w1=w1, w2_a=a, w2_b=b, t2=core, alpha=1.0)
    wanted = np.zeros((OUT, IN, K, K))
    for o in range(OUT):
        for i in range(IN):
            wanted[o, i] = (w1[o // 3, i // 2] * w2[o % 3, i % 2]).numpy()
    close(delta(update, weight), wanted)


def test_rescale_rows_and_columns() -> None:
    weight, rows, columns = draw(OUT, IN), draw(OUT), draw(1, IN)
    close(delta(Rescale(rows, on_input=False), weight), np.diag(rows) @ weight.numpy())
    close(delta(Rescale(columns, on_input=True), weight), weight.numpy() @ np.diag(columns[0]))


def test_difference_of_weight_and_bias() -> None:
    change, shift = draw(OUT), draw(OUT, seed=1)
    update = Difference(weight=change, bias=shift)
    assert torch.equal(delta(update, draw(OUT)), change)
    moved = bias_delta(update, draw(OUT))
    assert moved is not None and torch.equal(moved, shift)
    assert bias_delta(LowRank(draw(R, IN), draw(OUT, R), 1.0), draw(OUT)) is None
    assert not delta(Difference(bias=shift), draw(OUT)).any()


def test_computed_in_float32_whatever_comes_in() -> None:
    update = LowRank(draw(R, IN).bfloat16(), draw(OUT, R).bfloat16(), alpha=1.0)
    change = delta(update, draw(OUT, IN).half())
    assert change.dtype == torch.float32
    torch.testing.assert_close(change, update.up.float() @ update.down.float() / R)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (LowRank(draw(R, OUT), draw(IN, R), 1.0), "shape [4, 6], this one is [6, 4]"),
        (LowRank(draw(R, IN), draw(OUT, R + 1), 1.0), "down has rank 2, up 3"),
        (LowRank(draw(R, IN), draw(OUT, R), 1.0, magnitude=draw(OUT + 1, 1)), "magnitude [7, 1]"),
        (Rescale(draw(OUT), on_input=True), "rescales 6 inputs, this weight has 4"),
        (Kronecker(w1=draw(2, 2)), "factor is missing"),
        (Difference(weight=draw(IN, OUT)), "shape [4, 6]"),
    ],
)
def test_what_does_not_fit_is_refused(update: LayerUpdate, words: str) -> None:
    with pytest.raises(ModelError) as raised:
        delta(update, draw(OUT, IN))
    assert words in str(raised.value)

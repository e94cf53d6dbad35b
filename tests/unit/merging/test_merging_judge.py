"""Ways that sd-mecha has too give what it gives."""

import importlib
import math

import pytest
import torch

from konomi.merging.formulas import Knobs
from konomi.merging.methods import method_named

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mecha():
    pytest.importorskip(
        "sd_mecha",
        reason="sd-mecha is a judge that is installed by hand: some of what it needs is GPL",
    )
    home = "sd_mecha.extensions.builtin.merge_methods"
    names = ("cosine", "crossover", "limiting", "linear", "svd", "ties")
    return {name: importlib.import_module(f"{home}.{name}") for name in names}


def models(count, shape):
    generator = torch.Generator().manual_seed(len(shape))
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def judged(mecha, name, given, alpha):
    linear, a = mecha["linear"], torch.tensor(alpha)

    def call(way, *arguments, **settings):
        return way.__wrapped__(*arguments, **settings)

    def tables(*arguments):
        return [{"x": argument} for argument in arguments]

    match name, given:
        case "weighted_sum", (one, other):
            return call(linear.weighted_sum, *tables(one, other), a, key="x")
        case "n_average", _:
            return call(linear.n_average, *tables(*given), key="x")
        case "slerp" | "geometric", (one, other):
            way = linear.slerp if name == "slerp" else linear.geometric_sum
            return call(way, one, other, a)
        case "add_difference", (one, other, base):
            return call(linear.add_difference, *tables(one, other - base), a, key="x")
        case "perpendicular", (one, other, base):
            return one + a * call(linear.perpendicular_component, one - base, other - base)
        case "train_difference", (one, other, base):
            return one + call(linear.train_difference_mask, one, other, base, a) * (other - base)
        case "cosine_a" | "cosine_b", (one, other):
            return call(getattr(mecha["cosine"], f"add_{name}"), one, other, a)
        case "crossover", (one, other):
            return call(mecha["crossover"].crossover, one, other, alpha)
        case "rotate", (one, other):
            tables = ({"x": one.double()}, {"x": other.double()})
            way, none = mecha["svd"].rotate, torch.tensor(0.0, dtype=torch.float64)
            return call(way, *tables, alpha, none, key="x").float()
        case "clamp", _:
            return call(mecha["limiting"].clamp, *given)
        case "ties", (*tuned, base):
            deltas = [one - base for one in tuned]
            # Of n values it keeps n - int((1 - k) n) + 1; ours the share itself, rounded up.
            n = base.numel()
            k = 1 - (n - math.ceil(0.4 * n) + 1.5) / n
            return base + alpha * call(mecha["ties"].ties_sum, *deltas, k=k, vote_sgn=True)
        case "model_stock", (*tuned, base):
            # It takes angles along the last axis; the paper those of a whole layer.
            deltas = [(one - base).flatten() for one in tuned]
            return base + call(mecha["ties"].model_stock, *deltas).view_as(base)
        case "geometric_median", _:
            # In float32 it stops where its objective no longer moves, at 1e-4 of the place.
            exact = [one.double() for one in given]
            return call(mecha["ties"].geometric_median, *exact, maxiter=5000).float()
    raise AssertionError(name)


COUNTS = {
    "weighted_sum": 2,
    "n_average": 3,
    "slerp": 2,
    "geometric": 2,
    "add_difference": 3,
    "perpendicular": 3,
    "train_difference": 3,
    "cosine_a": 2,
    "cosine_b": 2,
    "crossover": 2,
    "clamp": 3,
    "rotate": 2,
    "ties": 3,
    "model_stock": 3,
    "geometric_median": 3,
}


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("shape", [(8, 10), (8, 6, 3, 3), (20,)])
def test_the_same_merged_tensors(mecha, name, shape):
    # Of matrices with fewer rows than columns, sd-mecha's rotation is not the nearest one.
    shape = shape[::-1] if name == "rotate" and len(shape) == 2 else shape
    given = models(COUNTS[name], shape)
    expected = judged(mecha, name, [one.clone() for one in given], 0.3)
    merged = method_named(name).formula(given, Knobs(alpha=0.3, density=0.4))
    torch.testing.assert_close(merged, expected, rtol=3e-6, atol=3e-6)

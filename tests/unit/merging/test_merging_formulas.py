"""Each way of merging against its definition, written out in numpy's float64."""

import numpy as np
import pytest
import torch

from konomi.merging import formulas
from konomi.merging.formulas import Knobs
from konomi.merging.methods import METHODS


def tensors(count, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def cosine(x, y):
    return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


def slerp(a, b, t):
    omega = np.arccos(cosine(a, b))
    length = np.linalg.norm(a) * (1 - t) + np.linalg.norm(b) * t
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return length * (np.sin((1 - t) * omega) * unit_a + np.sin(t * omega) * unit_b) / np.sin(omega)


def perpendicular(a, b, c, t):
    ours, theirs = (a - c).ravel(), (b - c).ravel()
    unit = ours / np.linalg.norm(ours)
    return a + t * (theirs - unit * (unit @ theirs)).reshape(a.shape)


def geometric(a, b, t):
    return (a.astype(complex) ** (1 - t) * b.astype(complex) ** t).real


def by_likeness(a, b, cosines, t):
    k = 1 - np.clip(cosines - t, 0, 1)
    return (1 - k) * a + k * b


def columns(a, b):
    return (a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))


def trim(x, share):
    kept = np.argsort(-np.abs(x).ravel(), kind="stable")[: int(np.ceil(share * x.size - 1e-9))]
    result = np.zeros(x.size)
    result[kept] = x.ravel()[kept]
    return result.reshape(x.shape)


def elected(differences):
    result = np.zeros_like(differences[0])
    for place in np.ndindex(result.shape):
        values = [d[place] for d in differences]
        sign = np.sign(sum(values))
        agreeing = [value for value in values if np.sign(value) == sign != 0]
        result[place] = np.mean(agreeing) if agreeing else 0.0
    return result


def median(models):
    result = np.mean(models, axis=0)
    for _ in range(3000):
        weights = [1 / np.linalg.norm(m - result) for m in models]
        result = sum(w * m for w, m in zip(weights, models)) / sum(weights)
    return result


def crossover(a, b, t):
    mixed = np.zeros_like(np.fft.fftn(a))
    one, other = np.fft.fftn(a), np.fft.fftn(b)
    for place in np.ndindex(a.shape):
        radius = np.sqrt(
            np.mean([(min(i, n - i) / max(n // 2, 1)) ** 2 for i, n in zip(place, a.shape)])
        )
        mixed[place] = other[place] if radius > 1 - t else one[place]
    return np.fft.ifftn(mixed).real


def model_stock(b, c, base):
    theta = cosine(b - base, c - base)
    t = 2 * theta / (1 + theta) if theta > 0 else 0.0
    return t * (b + c) / 2 + (1 - t) * base


CASES = {
    "weighted_sum": (2, lambda k, a, b: (1 - k.alpha) * a + k.alpha * b),
    "sigmoid": (
        2,
        lambda k, a, b: a + (3 * k.alpha**2 - 2 * k.alpha**3) * (b - a),
    ),
    "n_average": (4, lambda k, *models: np.mean(models, axis=0)),
    "add_difference": (3, lambda k, a, b, c: a + k.alpha * (b - c)),
    "triple_sum": (3, lambda k, a, b, c: (1 - k.alpha - k.beta) * a + k.alpha * b + k.beta * c),
    "train_difference": (
        3,
        lambda k, a, b, c: a + k.alpha * 1.8 * abs(b - a) / (abs(b - a) + abs(b - c)) * (b - c),
    ),
    "perpendicular": (3, lambda k, a, b, c: perpendicular(a, b, c, k.alpha)),
    "slerp": (2, lambda k, a, b: slerp(a, b, k.alpha)),
    "geometric": (2, lambda k, a, b: geometric(a, b, k.alpha)),
    "cosine_a": (2, lambda k, a, b: by_likeness(a, b, columns(a, b), k.alpha)),
    "cosine_b": (
        2,
        lambda k, a, b: by_likeness(a, b, (columns(a, b) + cosine(a, b)) / 2, k.alpha),
    ),
    "ties": (
        4,
        lambda k, *m: m[-1] + k.alpha * elected([trim(x - m[-1], k.density) for x in m[:-1]]),
    ),
    "model_stock": (3, lambda k, b, c, base: model_stock(b, c, base)),
    "geometric_median": (4, lambda k, *models: median(models)),
    "top_k": (2, lambda k, a, b: a + trim(b - a, k.alpha)),
    "crossover": (2, lambda k, a, b: crossover(a, b, k.alpha)),
    "clamp": (
        4,
        lambda k, a, *others: np.clip(a, np.min(others, axis=0), np.max(others, axis=0)),
    ),
}
KNOBS = Knobs(alpha=0.3, beta=0.2, density=0.4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3, 2), (7,)])
def test_a_way_is_its_definition(name, shape):
    count, defined = CASES[name]
    models = tensors(count, *shape)
    before = [model.clone() for model in models]
    merged = getattr(formulas, name)(models, KNOBS)
    expected = defined(KNOBS, *[model.numpy() for model in before])
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(m, b) for m, b in zip(models, before)), "the models are left alone"


def test_every_way_is_tested():
    elsewhere = {"dare", "della", "rotate"}
    assert {method.name for method in METHODS} == CASES.keys() | elsewhere
    assert all(method.formula.__doc__ for method in METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_equal_models_stay_as_they_are(method):
    (model,) = tensors(1, 5, 4)
    count = max(method.models[0], 2)
    merged = method.formula([model.clone() for _ in range(count)], KNOBS)
    torch.testing.assert_close(merged, model, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_zeros_and_single_numbers_pass(method):
    for shape in ((3, 3), ()):
        models = [torch.zeros(shape), *(torch.ones(shape) for _ in range(method.models[0] - 1))]
        merged = method.formula(models, KNOBS)
        assert merged.shape == shape and bool(torch.isfinite(merged).all())


@pytest.mark.parametrize("name", ["weighted_sum", "sigmoid", "slerp", "geometric"])
def test_the_ends_are_the_models(name):
    a, b = tensors(2, 5, 4)
    for alpha, expected in ((0.0, a), (1.0, b)):
        merged = getattr(formulas, name)([a, b], Knobs(alpha=alpha))
        torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["dare", "della"])
def test_dropping_at_random_keeps_the_mean(name):
    """What is kept is scaled up by its own chance, so that its expectation is the difference."""
    model, base = torch.full((40, 1000), 2.0), torch.ones(40, 1000)
    model += torch.linspace(0, 0.5, 1000)
    knobs = Knobs(alpha=1.0, beta=0.2, density=0.4, name="x")
    merged = getattr(formulas, name)([model, base], knobs)
    again = getattr(formulas, name)([model, base], knobs)
    assert torch.equal(merged, again)
    other = getattr(formulas, name)([model, base], Knobs(1.0, 0.2, 0.4, seed=1, name="x"))
    assert not torch.equal(merged, other)
    difference = merged - base
    kept = difference != 0
    assert abs(float(kept.float().mean()) - 0.4) < 0.01
    assert abs(float(difference.mean() / (model - base).mean()) - 1) < 0.02
    halves = kept[:, :500].float().mean(), kept[:, 500:].float().mean()
    # Ranks of della: the larger half is kept with 0.45 on average, the smaller with 0.35.
    wanted = 0.1 if name == "della" else 0.0
    assert abs(float(halves[1] - halves[0]) - wanted) < 0.02
    scaled = difference[kept] / (model - base)[kept]
    low, high = (1 / 0.5, 1 / 0.3) if name == "della" else (1 / 0.4, 1 / 0.4)
    assert float(scaled.min()) == pytest.approx(low, rel=0.01)
    assert float(scaled.max()) == pytest.approx(high, rel=0.01)


def test_one_far_model_hardly_moves_the_median():
    near, far = tensors(3, 50), torch.full((50,), 1000.0, dtype=torch.float64)
    merged = formulas.geometric_median([*near, far], Knobs())
    assert float((merged - torch.stack(near).mean(0)).norm()) < 10

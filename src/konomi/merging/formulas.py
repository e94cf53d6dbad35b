"""How the same tensor of several models becomes one: a small function for each way.

Each takes the tensors of one name, of equal shape, in float32 or float64, and a `Knobs`; it returns
a new tensor, or one of those given. Models are A, B, C ... in the order in which the user names
them. Ways that work with differences from a common ancestor take it as the last model, as
`add_difference` always did. What is said of a *tensor* (its norm, an angle, a share) is per tensor;
everything else is value by value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from konomi.diffusion.random import stable_hash


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the user sets, for one tensor."""

    alpha: float = 0.5
    beta: float = 0.0
    density: float = 1.0
    """Share of the values of a difference that is kept."""
    seed: int = 0
    name: str = ""
    """Of the tensor: what is drawn at random is drawn anew for each, the same for a seed."""

    def generator(self, number: int) -> torch.Generator:
        """For the difference of one model."""
        key = stable_hash("merge", self.seed, self.name, number) & (2**63 - 1)
        return torch.Generator().manual_seed(key)


def weighted_sum(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """(1 - alpha) A + alpha B (Wortsman et al. 2022, "Robust fine-tuning"; A1111)."""
    a, b = models
    return torch.lerp(a, b, knobs.alpha)


def sigmoid(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """`weighted_sum` at alpha^2 (3 - 2 alpha), which is flat near 0 and 1 (A1111's first
    "sigmoid")."""
    a, b = models
    return torch.lerp(a, b, knobs.alpha**2 * (3 - 2 * knobs.alpha))


def n_average(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """The mean of all models (Wortsman et al. 2022, "Model soups": the uniform soup)."""
    total = models[0].clone()
    for model in models[1:]:
        total += model
    return total.div_(len(models))


def add_difference(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A + alpha (B - C) (A1111; task arithmetic of Ilharco et al. 2023)."""
    a, b, c = models
    return torch.add(a, torch.sub(b, c), alpha=knobs.alpha)


def triple_sum(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """(1 - alpha - beta) A + alpha B + beta C."""
    a, b, c = models
    return a.mul(1 - knobs.alpha - knobs.beta).add_(b, alpha=knobs.alpha).add_(c, alpha=knobs.beta)


def train_difference(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A + 1.8 alpha m (B - C) with m = |B - A| / (|B - A| + |B - C|): as if what made B of C had
    been trained into A, so less where A has it already (sd-mecha, `train_difference_mask`)."""
    a, b, c = models
    apart, learned = (b - a).abs_(), b - c
    total = apart + learned.abs()
    share = torch.where(total == 0, 0.0, apart / total)
    return a + share.mul_(1.8 * knobs.alpha).mul_(learned)


def geometric(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A^(1 - alpha) B^alpha, the real part of the complex power (sd-mecha, `geometric_sum`).

    Where both have a sign it is that sign times the weighted geometric mean; where the signs
    differ, the phase pi turns with the exponent of the negative one.
    """
    a, b = models
    size = a.abs().pow_(1 - knobs.alpha).mul_(b.abs().pow_(knobs.alpha))
    of_a = a.new_tensor(math.cos(math.pi * (1 - knobs.alpha)))
    of_b = a.new_tensor(math.cos(math.pi * knobs.alpha))
    one = a.new_tensor(1.0)
    return size.mul_(
        torch.where(a < 0, torch.where(b < 0, -one, of_a), torch.where(b < 0, of_b, one))
    )


def clamp(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A, kept between the least and the greatest of the other models (sd-mecha, `clamp`)."""
    a, *others = models
    low, high = others[0], others[0]
    for other in others[1:]:
        low, high = torch.minimum(low, other), torch.maximum(high, other)
    return torch.minimum(torch.maximum(a, low), high)


def perpendicular(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A + alpha times what of B - C is orthogonal to A - C: what A has learned already is not
    added again (sd-mecha, `add_perpendicular`)."""
    a, b, c = models
    ours, theirs = a - c, b - c
    square = _dot(ours, ours)
    if square > 0:
        theirs -= ours * (_dot(ours, theirs) / square)
    return theirs.mul_(knobs.alpha).add_(a)


def slerp(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """From A to B along the arc between their directions, the length from A's to B's in a straight
    line (Shoemake 1985). Where there is no arc, because a tensor is zero or both point the same
    or opposite ways, `weighted_sum`.
    """
    a, b = models
    norm_a, norm_b = math.sqrt(_dot(a, a)), math.sqrt(_dot(b, b))
    if norm_a == 0 or norm_b == 0:
        return torch.lerp(a, b, knobs.alpha)
    cosine = max(-1.0, min(1.0, _dot(a, b) / (norm_a * norm_b)))
    omega = math.acos(cosine)
    if math.sin(omega) < 1e-6:
        return torch.lerp(a, b, knobs.alpha)
    length = norm_a + knobs.alpha * (norm_b - norm_a)
    of_a = length * math.sin((1 - knobs.alpha) * omega) / (math.sin(omega) * norm_a)
    of_b = length * math.sin(knobs.alpha * omega) / (math.sin(omega) * norm_b)
    return a.mul(of_a).add_(b, alpha=of_b)


def cosine_a(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """A where B is like it, B where it is not: (1 - k) A + k B with
    k = 1 - clamp(cos - alpha, 0, 1), cos between the columns along the first axis (sd-mecha,
    `add_cosine_a`)."""
    a, b = models
    return _by_likeness(a, b, _column_cosines(a, b), knobs.alpha)


def cosine_b(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """As `cosine_a`, with the mean of the columns' and of the whole tensor's cosine (sd-mecha,
    `add_cosine_b`)."""
    a, b = models
    norms = math.sqrt(_dot(a, a) * _dot(b, b))
    whole = _dot(a, b) / norms if norms else 0.0
    return _by_likeness(a, b, (_column_cosines(a, b) + whole) / 2, knobs.alpha)


def ties(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """TIES-Merging (Yadav et al. 2023), with the last model C as the ancestor:
    C + alpha times the merged differences. Trim: of each difference the share `density` of largest
    values is kept. Elect: per value the sign with the larger sum. Merge: the mean of those that
    have it.
    """
    *tuned, base = models
    return base + knobs.alpha * _elected([_trim(model - base, knobs.density) for model in tuned])


def dare(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """DARE (Yu et al. 2024): of each difference from the last model, values are dropped at random
    with probability 1 - density and the rest divided by density; the last model plus alpha times
    their sum.
    """
    *tuned, base = models
    total = torch.zeros_like(base)
    for number, model in enumerate(tuned):
        kept = torch.empty_like(base).bernoulli_(knobs.density, generator=knobs.generator(number))
        total += kept.mul_(model - base)
    return total.mul_(knobs.alpha / knobs.density).add_(base)


def della(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """DELLA-Merging (Deep et al. 2024): DARE whose chance of dropping a value falls with its rank
    by size within its row, in a window of width beta around 1 - density; each kept value is
    divided by its own chance of being kept; then TIES' election and mean.
    """
    *tuned, base = models
    elected = _elected(
        [
            _drop_by_size(model - base, knobs.density, knobs.beta, knobs.generator(number))
            for number, model in enumerate(tuned)
        ]
    )
    return base + knobs.alpha * elected


def model_stock(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """Model Stock (Jang et al. 2024, section 4): t mean(tuned) + (1 - t) base, the last model, with
    t = N cos / (1 + (N - 1) cos) and cos the mean cosine between the differences of two models.
    Where they point away from each other, t is 0.
    """
    *tuned, base = models
    differences = [model - base for model in tuned]
    cosines = []
    for i, one in enumerate(differences):
        for other in differences[:i]:
            norms = math.sqrt(_dot(one, one) * _dot(other, other))
            cosines.append(_dot(one, other) / norms if norms else 0.0)
    cosine = max(0.0, sum(cosines) / len(cosines))
    count = len(tuned)
    return base + n_average(differences, knobs) * (count * cosine / (1 + (count - 1) * cosine))


def geometric_median(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """The tensor whose distances to all models have the smallest sum (Weiszfeld 1937): one model
    that is far from the others hardly moves it.

    It is a weighted mean of the models, so that the weights alone are iterated, on the models'
    inner products.
    """
    origin = models[0]
    offsets = [model - origin for model in models]
    gram = torch.tensor([[_dot(x, y) for y in offsets] for x in offsets], dtype=torch.float64)
    weights = torch.full((len(models),), 1 / len(models), dtype=torch.float64)
    smallest = 1e-12 * float(gram.diagonal().max().sqrt())
    for _ in range(1000):
        squares = gram.diagonal() - 2 * gram @ weights + weights @ gram @ weights
        inverse = 1 / squares.clamp(min=0).sqrt().clamp(min=max(smallest, 1e-300))
        moved = inverse / inverse.sum()
        if bool((moved - weights).abs().max() < 1e-12):
            break
        weights = moved
    result = origin.clone()
    for weight, offset in zip(weights.tolist(), offsets, strict=True):
        result.add_(offset, alpha=weight)
    return result


def top_k(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """B's value where B differs most from A, in the share alpha of all places; A's elsewhere. As
    TIES' trimming (Yadav et al. 2023, section 4.1), with one model."""
    a, b = models
    return a + _trim(b - a, knobs.alpha)


def crossover(models: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """The low frequencies of A and the high ones of B: those whose distance from zero is more than
    1 - alpha of the largest (sd-mecha, `crossover`)."""
    a, b = models
    if a.ndim == 0:
        return torch.lerp(a, b, knobs.alpha)
    axes = []
    for axis, size in enumerate(a.shape):
        if axis == a.ndim - 1:
            frequencies = torch.fft.rfftfreq(size, dtype=a.dtype)
        else:
            frequencies = torch.fft.fftfreq(size, dtype=a.dtype).abs()
        axes.append(frequencies / max(float(frequencies.max()), 1e-12))
    radius = torch.zeros(())
    for axis, frequencies in enumerate(axes):
        shape = [1] * a.ndim
        shape[axis] = -1
        radius = radius + frequencies.square().view(shape)
    high = (radius / a.ndim).sqrt() > 1 - knobs.alpha
    mixed = torch.where(high, torch.fft.rfftn(b), torch.fft.rfftn(a))
    merged: Tensor = torch.fft.irfftn(mixed, s=a.shape)
    return merged


def _dot(x: Tensor, y: Tensor) -> float:
    """In float64: the norm of fifty million float32 numbers needs it."""
    return sum(
        float(torch.dot(u.double(), v.double()))
        for u, v in zip(x.flatten().split(1 << 20), y.flatten().split(1 << 20), strict=True)
    )


def _column_cosines(a: Tensor, b: Tensor) -> Tensor:
    if a.ndim == 0:
        a, b = a[None], b[None]
    cosines: Tensor = functional.cosine_similarity(a, b, dim=0)
    return cosines


def _by_likeness(a: Tensor, b: Tensor, cosines: Tensor, alpha: float) -> Tensor:
    return torch.lerp(a, b, 1 - (cosines - alpha).clamp(0, 1))


def _trim(difference: Tensor, density: float) -> Tensor:
    """The share `density` of values that are largest in size; the others are zero."""
    sizes = difference.abs().flatten()
    kept = math.ceil(density * sizes.numel() - 1e-9)
    if kept >= sizes.numel():
        return difference
    if kept <= 0:
        return torch.zeros_like(difference)
    least = sizes.kthvalue(sizes.numel() - kept + 1).values
    return torch.where(difference.abs() >= least, difference, 0.0)


def _elected(differences: Sequence[Tensor]) -> Tensor:
    """Per value: the mean of the differences that have the sign of their sum; 0 where none has."""
    sign = torch.sign(n_average(differences, Knobs()))
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for difference in differences:
        agrees = (torch.sign(difference) == sign) & (sign != 0)
        total += torch.where(agrees, difference, 0.0)
        count += agrees
    return total.div_(count.clamp_(min=1))


def _drop_by_size(
    difference: Tensor, density: float, window: float, generator: torch.Generator
) -> Tensor:
    rows = difference.flatten(1) if difference.ndim > 1 else difference.reshape(1, -1)
    width = rows.shape[1]
    order = rows.abs().argsort(dim=1, stable=True)
    ranks = torch.empty_like(rows)
    # The smallest of a row has rank 0, the largest rank 1.
    ranks.scatter_(1, order, torch.linspace(0, 1, width, dtype=rows.dtype).expand_as(rows))
    chance = (density + window * (ranks - 0.5)).clamp_(0, 1)
    kept = torch.bernoulli(chance, generator=generator)
    return (kept * rows / chance.clamp(min=1e-6)).view_as(difference)

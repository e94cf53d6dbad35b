"""How far a mean over prompts and seeds can be trusted: 95 % intervals.

Pictures of one prompt are alike, and pictures of one seed may be, so P x S pictures say less than
as many independent ones would. Prompts and seeds are drawn again with replacement, both at once
(the pigeonhole bootstrap, Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1).
With a handful of prompts or seeds that interval alone is too narrow or too wide (it covers 81 to
99 %, docs/notes.md), so it keeps its shape and is stretched to the width that the analysis of
variance of the P x S table gives, with Student's t at Satterthwaite's degrees of freedom
(Satterthwaite 1946; Searle, Casella & McCulloch 1992, "Variance Components", chapter 4).

Shapes: P prompts, S seeds, R resamples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from konomi.evaluation.pictures import Place
from konomi.evaluation.scorers.scorer import Scores
from konomi.evaluation.summary import Estimate

Table = np.ndarray[Any, np.dtype[np.float64]]
_NORMAL = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
_EVIDENT = 1.4
"""How many times the remaining variance that of prompts (or seeds) must be before it counts as an
effect of its own: about the upper quartile of F where there is none."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, its 95 % interval and its standard error. Of a single picture the interval is the
    value itself: nothing is known of its spread."""

    mean: float
    low: float
    high: float
    error: float
    count: int
    """How many pictures."""


def interval(scores: Scores, *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Of one score.

    scores: one value for each place; what is not finite counts as absent.
    seed: of the resampling; the same gives the same interval.
    resamples: how often prompts and seeds are drawn again.

    Raises ValueError where there is no value at all.
    """
    known = {place: value for place, value in scores.items() if math.isfinite(value)}
    if not known:
        raise ValueError("no scores to estimate from")
    mean = math.fsum(known.values()) / len(known)
    table_PS = _table(known)
    error, degrees = _standard_error(table_PS)
    if error == 0:
        return Interval(mean, mean, mean, 0.0, len(known))
    below, above = _shape(table_PS, seed, resamples)
    reach = student_quantile(degrees) / _NORMAL * error
    return Interval(mean, mean - below * reach, mean + above * reach, error, len(known))


def difference(ours: Scores, theirs: Scores, *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Of ours minus theirs, picture by picture: both drew the same prompts from the same noise.

    Arguments and errors as of `interval`; places that only one of them has are left out.
    """
    both = {place: ours[place] - theirs[place] for place in ours if place in theirs}
    return interval(both, seed=seed, resamples=resamples)


def estimate(
    scores: Scores,
    base: Scores | None,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
    resamples: int = 2000,
) -> Estimate:
    """A candidate's score beside the base's.

    scores: the candidate's, one value for each place.
    base: the base's at the same places; None for the base itself and where it has none.
    bounds: the least and the largest value there can be. Two prompts tell little of the next ones,
    and an interval may then reach further than any score could: it ends there.

    The other arguments and errors as of `interval`.
    """
    own = interval(scores, seed=seed, resamples=resamples)
    low, high = max(own.low, bounds[0]), min(own.high, bounds[1])
    shared = base is not None and any(
        place in base and math.isfinite(scores[place] - base[place]) for place in scores
    )
    if base is None or not shared:
        return Estimate(own.mean, low, high, None, None, own.count)
    rise = difference(scores, base, seed=seed, resamples=resamples)
    of_base = math.fsum(base.values()) / len(base)
    widest = bounds[1] - bounds[0]
    change = (rise.mean, max(rise.low, -widest), min(rise.high, widest))
    return Estimate(own.mean, low, high, of_base, change, own.count)


def _table(known: Mapping[Place, float]) -> Table:
    """[P, S]. A picture without score stands where its prompt and its seed lead to expect it."""
    prompts = {p: i for i, p in enumerate(sorted({prompt for prompt, _ in known}))}
    seeds = {s: i for i, s in enumerate(sorted({seed for _, seed in known}))}
    table = np.full((len(prompts), len(seeds)), np.nan)
    for (prompt, seed), value in known.items():
        table[prompts[prompt], seeds[seed]] = value
    absent = np.isnan(table)
    if absent.any():
        rows, columns = np.nanmean(table, axis=1), np.nanmean(table, axis=0)
        expected = rows[:, None] + columns[None, :] - np.nanmean(table)
        table = np.where(absent, expected, table)
    return table


def _standard_error(table_PS: Table) -> tuple[float, float]:
    """Of the table's mean, and the degrees of freedom it is known with."""
    prompts, seeds = table_PS.shape
    mean = table_PS.mean()
    rows, columns = table_PS.mean(1), table_PS.mean(0)
    if min(prompts, seeds) == 1:
        many = table_PS.ravel()
        if len(many) == 1:
            return 0.0, 1.0
        return float(many.std(ddof=1) / math.sqrt(len(many))), len(many) - 1.0
    of_prompts = seeds * ((rows - mean) ** 2).sum() / (prompts - 1)
    of_seeds = prompts * ((columns - mean) ** 2).sum() / (seeds - 1)
    remainder = table_PS - rows[:, None] - columns[None, :] + mean
    rest = (remainder**2).sum() / ((prompts - 1) * (seeds - 1))
    if of_seeds <= _EVIDENT * rest:
        square, degrees = of_prompts, prompts - 1.0
    elif of_prompts <= _EVIDENT * rest:
        square, degrees = of_seeds, seeds - 1.0
    else:
        square = of_prompts + of_seeds - rest
        degrees = square**2 / (
            of_prompts**2 / (prompts - 1)
            + of_seeds**2 / (seeds - 1)
            + rest**2 / ((prompts - 1) * (seeds - 1))
        )
    return math.sqrt(square / table_PS.size), float(degrees)


def _shape(table_PS: Table, seed: int, resamples: int) -> tuple[float, float]:
    """How far the middle 95 % of resampled means reach below and above, in standard deviations."""
    prompts, seeds = table_PS.shape
    drawn = np.random.default_rng(seed)
    share_of_prompts = drawn.multinomial(prompts, [1 / prompts] * prompts, resamples) / prompts
    share_of_seeds = drawn.multinomial(seeds, [1 / seeds] * seeds, resamples) / seeds
    means_R = ((share_of_prompts @ table_PS) * share_of_seeds).sum(1) - table_PS.mean()
    low, high = np.quantile(means_R, (0.025, 0.975))
    spread = means_R.std()
    # Where prompts differ in one of many seeds only, hardly any resample moves the mean.
    if not spread or low >= 0 or high <= 0:
        return _NORMAL, _NORMAL
    return float(-low / spread), float(high / spread)


def student_quantile(degrees: float) -> float:
    """The 97.5 % point of Student's t (Hill 1970, "Student's t-quantiles", Algorithm 396), to four
    digits for 1 degree of freedom and more; what is below counts as 1."""
    if degrees <= 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return math.sqrt(2 / (0.05 * 1.95) - 2)
    a = 1 / (degrees - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * degrees
    y = (d * 0.05) ** (2 / degrees)
    if y > 0.05 + a:
        x = -_NORMAL
        y = x**2
        if degrees < 5:
            c += 0.3 * (degrees - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y**2)
    else:
        y = (
            (
                1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3)
                + 0.5 / (degrees + 4)
            )
            * y
            - 1
        ) * (degrees + 1) / (degrees + 2) + 1 / y
    return math.sqrt(degrees * y)

"""Learning rate over a run, as a pure function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import replace

from konomi.config.rates import highest_rate, parse_rates, rate_at
from konomi.config.sections import OptimizerConfig


def schedule_length(config: OptimizerConfig, total_steps: int) -> int:
    """Steps over which the schedule runs."""
    return config.schedule_steps or total_steps


def warmup_steps(config: OptimizerConfig, total_steps: int) -> int:
    """Steps of rising learning rate; a setting below 1 is a share of the schedule."""
    return (
        round(config.warmup * schedule_length(config, total_steps))
        if config.warmup < 1
        else round(config.warmup)
    )


def rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by in step `step` (0 for the first) of `total_steps`, 0
    to 1.
    """
    warmup = warmup_steps(config, total_steps)
    rising = (step + 1) / (warmup + 1) if step < warmup else 1.0
    if config.rates:
        return rising * rate_at(parse_rates(config.rates), step) / highest_rate(config.rates)
    if step < warmup:
        return rising
    length = schedule_length(config, total_steps)
    # A schedule shorter than the run ends where it has come to; it does not begin again.
    progress = (min(step, max(length - 1, warmup)) - warmup) / max(length - warmup, 1)
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "cosine_restarts":
        return 0.5 * (1 + math.cos(math.pi * ((progress * config.cycles) % 1.0)))
    if config.schedule == "polynomial":
        return float((1 - progress) ** config.power)
    return 1.0


def moved_schedule(config: OptimizerConfig, step: int, then: int, now: int) -> str:
    """What another length changes in the learning rates from `step` on, as a sentence; empty if
    nothing.

    `then`, `now`: the schedule's lengths in steps.
    """

    def rate(at: int, length: int) -> float:
        return rate_factor(at, length, replace(config, schedule_steps=length))

    # The next step, where it matters now; else the first one where it does.
    different = (
        at
        for at in range(step, max(step + 1, then, now))
        if abs(rate(at, now) - rate(at, then)) > 0.01
    )
    at = next(different, None)
    if at is None:
        return ""
    was, is_now = rate(at, then), rate(at, now)
    what = "warm-up" if config.schedule == "constant" else f"{config.schedule} schedule"
    times = f", {is_now / was:.3g} times as much" if was else ""
    return (
        f"with {now} steps in place of {then} the {what} moves: the learning rate of step {at + 1} "
        f"is {100 * is_now:.3g} % of its height, and was to be {100 * was:.3g} %{times}. "
        f"--keep-schedule keeps that of {then} steps, and its last rate beyond them."
    )

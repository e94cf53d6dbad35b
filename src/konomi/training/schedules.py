"""Learning rate over a run, as a pure function of the step: nothing to save, nothing to restore."""

import math

from konomi.config.rates import highest_rate, parse_rates, rate_at
from konomi.config.sections import OptimizerConfig


def warmup_steps(config: OptimizerConfig, total_steps: int) -> int:
    """Steps of rising learning rate; a setting below 1 is a share of the run."""
    return round(config.warmup * total_steps) if config.warmup < 1 else round(config.warmup)


def rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by in step `step` (0 for the first) of `total_steps`, 0 to 1."""
    warmup = warmup_steps(config, total_steps)
    rising = (step + 1) / (warmup + 1) if step < warmup else 1.0
    if config.rates:
        return rising * rate_at(parse_rates(config.rates), step) / highest_rate(config.rates)
    if step < warmup:
        return rising
    progress = (step - warmup) / max(total_steps - warmup, 1)
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "cosine_restarts":
        return 0.5 * (1 + math.cos(math.pi * ((progress * config.cycles) % 1.0)))
    if config.schedule == "polynomial":
        return float((1 - progress) ** config.power)
    return 1.0

"""When previews are drawn. By themselves they are drawn at the start, on the way and at the end,
as long as that costs little beside the run.
"""

import time
from dataclasses import dataclass

import torch

from konomi.data.buckets import parse_size
from konomi.models.modes import eval_mode
from konomi.tasks.preparing import Job
from konomi.tasks.preview_switch import previews_switched_off
from konomi.tasks.previewing import preview_prompts

ON_THE_WAY = 4
"""Previews between the first and the last that `auto` asks for."""
SHARE = 0.15
"""Of the run's time that `auto` may take."""
SECONDS = 20.0
"""That it may take in any case: nobody minds them in a run of a minute."""
PASSES_A_STEP = 3.0
"""What a training step costs in passes through the denoiser: forward, and about twice that
backward."""


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """The steps after which previews are drawn; 0 is before the first."""

    steps: frozenset[int] = frozenset()
    note: str = ""
    """What should be known before training."""


def draws_previews(job: Job) -> bool:
    """Whether a finished run has previews."""
    every = job.recipe.run.preview_every
    return not previews_switched_off() if every == "auto" else every > 0


def preview_plan(job: Job) -> PreviewPlan:
    """The recipe's plan; for `auto`, the denoiser is timed, with all parts of the base still in
    place.
    """
    every, total = job.recipe.run.preview_every, job.total_steps
    if not draws_previews(job):
        return PreviewPlan()
    if every != "auto":
        return PreviewPlan(frozenset({*range(0, total, every), total}))
    each = seconds_each(job)
    return automatic_plan(each, seconds_of_run(job, each), total)


def automatic_plan(each: float, run: float, total: int) -> PreviewPlan:
    """At the end in any case; then at the start, then on the way, while all of them stay within
    bounds.

    Args:
        each: seconds that the previews of one step take.
        run: seconds of the run without them.
        total: its steps.
    """
    allowed = int(max(SHARE * run, SECONDS) / each) if each else ON_THE_WAY + 2
    if allowed < 2:
        note = (
            f"previews are drawn only at the end: each time they take about {_spoken(each)}, and "
            f"the run about {_spoken(run)}. run.preview_every = {max(total // 2, 1)} draws them on "
            "the way as well."
        )
        return PreviewPlan(frozenset({total}), note)
    parts = min(allowed - 2, ON_THE_WAY) + 1
    return PreviewPlan(frozenset(round(total * part / parts) for part in range(parts + 1)))


def cost_note(plan: PreviewPlan, count: int, seconds: float, total: int) -> str:
    """What the previews cost, once it has been measured; the sentence for `Warned`."""
    between = sorted(plan.steps - {0, total})
    times = ["at the start"] if 0 in plan.steps else []
    if len(between) <= ON_THE_WAY:
        times += [f"after step {step}" for step in between]
    else:
        times.append(f"every {between[0]} steps")
    spoken = " and ".join([", ".join(times), "at the end"] if times else ["at the end"])
    pictures = "1 picture takes" if count == 1 else f"{count} pictures take"
    return (
        f"previews: {pictures} {_spoken(seconds)} each time, {spoken}. run.preview_every sets "
        "how often; 0 draws none."
    )


def seconds_each(job: Job) -> float:
    """About what the previews of one step take: one guided pass through the denoiser, measured,
    times their number.
    """
    base, settings = job.base, job.recipe.preview
    width, height = parse_size(settings.size or job.recipe.data.resolution or str(base.resolution))
    grid = (2, base.latent_channels, height // base.latent_factor, width // base.latent_factor)
    with eval_mode(base.denoiser, *base.text_encoders.values()):
        text = base.encode_captions(("", ""), job.recipe.text)
        text = base.with_sizes(
            text, torch.tensor([[height, width, 0, 0, height, width]] * 2, device=base.device)
        )
        timesteps = base.process.timesteps(
            [*base.process.spread_timesteps(1, job.recipe.objective)] * 2, base.device
        )
        started = 0.0
        # The first pass warms up.
        for _ in range(2):
            started = time.perf_counter()
            float(base.predict(torch.zeros(grid, device=base.device), timesteps, text).sum())
    return (time.perf_counter() - started) * settings.steps * len(preview_prompts(job))


def seconds_of_run(job: Job, each: float) -> float:
    """About what the run takes without previews, from the time of those: both are passes through
    one denoiser.
    """
    one_pass = each / (2 * job.recipe.preview.steps * max(len(preview_prompts(job)), 1))
    return one_pass * PASSES_A_STEP * job.recipe.run.batch_size * job.total_steps


def _spoken(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

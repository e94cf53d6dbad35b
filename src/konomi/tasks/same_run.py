"""Whether what is resumed is the run that was stopped: what it is made of, and what another length
does to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from konomi.methods.method import Phase
from konomi.tasks.preparing import Job, place
from konomi.training.checkpoint import Checkpoint
from konomi.training.identity import run_identity
from konomi.training.schedules import moved_schedule, schedule_length


def schedule_steps(job: Job) -> int:
    """The length of the job's schedule."""
    return schedule_length(job.recipe.optimizer, job.total_steps)


def with_schedule(job: Job, checkpoint: Checkpoint, *, keep: bool) -> tuple[Job, str]:
    """The job with the schedule that the run had, if that is to be kept; else what another length
    does to it.
    """
    then = _schedule_then(checkpoint)
    optimizer, done = job.recipe.optimizer, checkpoint.state.numbers["step"]
    now = schedule_length(optimizer, job.total_steps)
    if then is None or then == now:
        return job, ""
    if keep:
        return replace(
            job, recipe=replace(job.recipe, optimizer=replace(optimizer, schedule_steps=then))
        ), ""
    return job, moved_schedule(optimizer, done, then, now)


def moved_phases(phases: Sequence[Phase], checkpoint: Checkpoint, now: int) -> Iterator[str]:
    """What another length does to phases that are a share of the run: those that have not ended,
    but for the last.

    `now`: the schedule's length in steps.
    """
    then = _schedule_then(checkpoint)
    for index in range(checkpoint.state.numbers["phase"], len(phases) - 1):
        was, will = (
            sum(phase.length(length) for phase in phases[: index + 1])
            for length in (then or now, now)
        )
        if was != will:
            yield (
                f"with {now} steps in place of {then} the phase {phases[index].name!r} ends after "
                f"step {will}, and was to end after step {was}. --keep-schedule keeps it."
            )


def _schedule_then(checkpoint: Checkpoint) -> int | None:
    """The schedule's length when the checkpoint was written; None where it does not say so."""
    then = checkpoint.run.get("schedule_steps")
    return then if type(then) is int and 0 < then < 2**53 else None


def most_bytes(job: Job) -> float:
    """More than any optimiser's state of any adapter or of all weights takes, and little enough to
    be read.
    """
    modules = (job.base.denoiser, job.base.vae, *job.base.text_encoders.values())
    return 2.0**30 + 256.0 * sum(
        parameter.numel() for module in modules for parameter in module.parameters()
    )


def identity_of(job: Job) -> dict[str, Any]:
    """What must be the same for a run to be gone on with. Loads the base."""
    return run_identity(
        job.recipe,
        job.assignment.records,
        job.held_out.records,
        _base_fingerprint(job),
        job.total_steps,
        attached=[f"{file.flag} {file.sha256[:16]}" for file in job.attached.files],
    )


def _base_fingerprint(job: Job) -> str:
    place(job)
    parts: tuple[Literal["denoiser", "vae", "text"], ...] = ("denoiser", "vae", "text")
    return " ".join([job.base.family, *(job.base.fingerprint(part)[:16] for part in parts)])

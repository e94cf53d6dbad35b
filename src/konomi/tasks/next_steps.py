"""What to type after a run: the commands that use its result and go on with it."""

import shlex
from pathlib import Path

from konomi.tasks.preparing import Job
from konomi.tasks.previewing import preview_prompts


def next_commands(
    job: Job, folder: Path, result: Path, *, eta: float | None = None
) -> tuple[str, ...]:
    """Draw with the result, and train on. `eta`: the one that is suggested for an edit."""
    prompt = next(iter(preview_prompts(job)), "a house by a lake")
    if job.needs.edits_towards:
        draw = ["konomi", "generate", "--base", job.recipe.base, "--edit", str(result)]
        draw += [] if eta is None else ["--eta", f"{eta:g}"]
        longer = ["konomi", "resume", str(folder), "--steps", str(2 * job.total_steps)]
        return shlex.join(draw), shlex.join(longer)
    if job.needs.makes == "model":
        draw = ["konomi", "generate", prompt, "--base", str(result)]
    else:
        draw = ["konomi", "generate", prompt, "--base", job.recipe.base]
        # What it was trained on top of comes along.
        for file in (*job.recipe.adapters, str(result)):
            draw += ["--add", file]
    if job.recipe.data.resolution not in (None, str(job.base.resolution)):
        draw += ["--size", str(job.recipe.data.resolution)]
    longer = ["konomi", "resume", str(folder), "--steps", str(2 * job.total_steps)]
    return shlex.join(draw), shlex.join(longer)

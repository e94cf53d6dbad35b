"""Previews while training: the same pictures `konomi generate` draws with the file saved at that
step.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path

from konomi.adapters.adapter import Adapter
from konomi.config.sections import PreviewConfig
from konomi.data.buckets import parse_size
from konomi.generation.generate import generate
from konomi.generation.infotext import png_bytes
from konomi.generation.request import DEFAULT_ETA, EDIT_GUIDANCE, Origin, Request
from konomi.methods.method import Result
from konomi.models.memory import temporarily_loaded
from konomi.storage.atomic import write_file
from konomi.tasks.preparing import Job
from konomi.tasks.saving import as_read_back
from konomi.training.stop import Stop


def preview_prompts(job: Job) -> tuple[str, ...]:
    """The recipe's prompts, or a panel that shows learning and forgetting: the subject, the
    subject elsewhere, the class alone, something unrelated.
    """
    if job.recipe.preview.prompts:
        return job.recipe.preview.prompts
    if job.needs.edits_towards:
        return (job.needs.edits_towards,) * len(_ETAS)
    source = next((s for s in job.recipe.data.sources if s.role == "train"), None)
    trigger = source.trigger if source else ""
    noun = source.class_noun if source else ""
    subject = " ".join(word for word in (trigger, noun) if word)
    if not subject:
        captions = (
            row.caption for row in job.summary.images if row.role == "train" and row.caption
        )
        return tuple(dict.fromkeys([*islice(captions, 2), "a house by a lake"]))
    panel = [
        f"a photo of {subject}",
        f"{subject} on the beach",
        f"a photo of a {noun}" if noun else "",
    ]
    return tuple(prompt for prompt in [*panel, "a house by a lake"] if prompt)


def preview_requests(job: Job) -> list[Request]:
    """One picture a prompt, from fixed seeds."""
    settings, step = job.recipe.preview, job.base.size_step
    width, height = parse_size(
        settings.size or job.recipe.data.resolution or str(job.base.resolution)
    )
    return [
        Request.of(
            settings,
            prompt=prompt,
            seed=settings.seed + index,
            width=width // step * step,
            height=height // step * step,
            clip_skip=job.recipe.text.clip_skip,
        )
        for index, prompt in enumerate(preview_prompts(job))
    ]


def preview_paths(job: Job, folder: Path, step: int) -> list[Path]:
    """Where the pictures of a step lie: `step-NNNNNN-KK.png`, one a prompt."""
    return [
        folder / f"step-{step:06d}-{index:02d}.png" for index in range(len(preview_prompts(job)))
    ]


_ETAS = (0.0, DEFAULT_ETA, 1.0)
"""Of an edit, where the recipe has no prompts for previews: the picture, the edit, the target."""


def edit_guidance(job: Job) -> float:
    """The recipe's where it says one; edits want less than others."""
    given = job.recipe.preview.guidance
    return EDIT_GUIDANCE if given == PreviewConfig().guidance else given


def _requests(job: Job, loaded: Result) -> list[Request]:
    """With the states of an edit, as its file holds them."""
    requests = preview_requests(job)
    if not isinstance(loaded, Adapter) or loaded.edit is None:
        return requests
    etas = _ETAS if not job.recipe.preview.prompts else (DEFAULT_ETA,) * len(requests)
    width, height = loaded.edit.size
    return [
        replace(
            request,
            seed=job.recipe.preview.seed,
            edit=loaded.edit,
            eta=eta,
            guidance=edit_guidance(job),
            width=width,
            height=height,
        )
        for request, eta in zip(requests, etas, strict=True)
    ]


class PreviewStopped(Exception):
    """The run is to end, and no drawing holds it up."""


def draw_previews(
    job: Job, result: Result, folder: Path, step: int, stop: Stop | None = None
) -> list[Path]:
    """Draw the pictures of `preview_paths`. The base is left as it was found, whatever is raised.

    Raises PreviewStopped after the sampling step in which `stop` was requested.
    """

    def check_stop(done: int, of: int) -> None:
        if stop is not None and stop.requested:
            raise PreviewStopped("the run is to end")

    paths = preview_paths(job, folder, step)
    loaded = as_read_back(job, result)
    with temporarily_loaded(job.base, job.recipe.memory), job.method.as_loaded(loaded):
        origin = Origin(model=job.base.name, adapters=job.attached.used)
        pictures = generate(job.base, _requests(job, loaded), on_step=check_stop, origin=origin)
        for path, picture in zip(paths, pictures, strict=True):
            with write_file(path) as temporary:
                temporary.write_bytes(png_bytes(picture))
    return paths

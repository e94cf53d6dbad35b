"""Class images: drawn by the untouched base before training, kept, and taken again by every run
that asks for the same.

They lie in the cache, in a folder named by a hash of everything a picture depends on; picture
number i has seed + i. Each is whole or absent, so a killed run leaves what it had drawn, and more
are drawn where a later run wants more.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from konomi.config.recipe import Recipe
from konomi.data.buckets import assign, grid_for, parse_size
from konomi.data.containers import Entry
from konomi.data.manifest import Record
from konomi.data.sources import measure_file
from konomi.data.summary import dataset_summary
from konomi.errors import DataError
from konomi.generation.generate import generate
from konomi.generation.infotext import png_bytes
from konomi.generation.request import SHARED, Origin, Request
from konomi.models.base import BaseModel
from konomi.storage.atomic import sweep_temporaries, write_file
from konomi.tasks.preparing import Job, cache_folder
from konomi.training.events import Prepared

GROUP = 4
"""Pictures drawn at a time."""


def draw_class_images(job: Job) -> Iterator[Prepared]:
    """Make what is missing, telling how far it is. Every process makes its share. The base is left
    without weights.

    Raises ModelError where a picture cannot be drawn, RunError for the disk.
    """
    wanted = job.class_images
    if not wanted.total:
        return
    # As `generate` would: what trains in float32 later is drawn with in the precision of the
    # computation.
    job.base.place(job.processes.device, job.precision)
    paths = [path for _, prompt in wanted.prompts for path in _paths(job, prompt)]
    if job.processes.is_first:
        for folder in dict.fromkeys(path.parent for path in paths):
            sweep_temporaries(folder)
    done = sum(_is_whole(path) for path in paths)
    yield Prepared("class images", done, wanted.total)
    for _, prompt in wanted.prompts:
        for path, data in _missing(job, prompt):
            with write_file(path) as temporary:
                temporary.write_bytes(data)
            done = min(done + job.processes.world, wanted.total)
            yield Prepared("class images", done, wanted.total)
    # They come back from the file when used again, in the precision that training wants.
    job.base.unload(*job.base.loaded_parts())
    job.processes.wait()


def with_class_images(job: Job) -> Job:
    """The job with its class images as prior images; they are there. The number of steps does not
    depend on them.
    """
    if not job.class_images.total:
        return job
    records = tuple(
        _record(path, noun, prompt)
        for noun, prompt in job.class_images.prompts
        for path in _paths(job, prompt)
    )
    manifest = replace(job.manifest, records=job.manifest.records + records)
    size = parse_size(job.recipe.data.resolution or str(job.base.resolution))
    assignment = assign(
        job.assignment.records + records,
        size,
        job.recipe.data.buckets,
        grid_for(job.base.size_step),
    )
    run = job.recipe.run
    summary = dataset_summary(
        manifest,
        assignment,
        job.recipe.data,
        batch_size=run.batch_size,
        # `steps` came from the method where the recipe names neither.
        steps=run.steps or (0 if run.epochs else job.summary.steps),
        epochs=run.epochs,
    )
    return replace(job, manifest=manifest, assignment=assignment, summary=summary)


def class_image_folder(recipe: Recipe, base: BaseModel, prompt: str, size: tuple[int, int]) -> Path:
    """Where the pictures of a prompt lie: everything they depend on, but for their number, is in
    the name.
    """
    prior = recipe.prior
    facts: tuple[object, ...] = (prior.source, *size)
    if prior.source == "generate":
        parts = tuple(base.fingerprint(part) for part in ("denoiser", "text", "vae"))
        facts += (*parts, prompt, *(getattr(prior, name) for name in SHARED), recipe.text.clip_skip)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return cache_folder(recipe) / "class-images" / key


def _paths(job: Job, prompt: str) -> list[Path]:
    folder = class_image_folder(job.recipe, job.base, prompt, job.class_images.size)
    return [folder / f"{index:05d}.png" for index in range(job.class_images.count)]


def _missing(job: Job, prompt: str) -> Iterator[tuple[Path, bytes]]:
    """(path, PNG) of each picture that is not there, of those that fall to this process.

    A group is drawn in one batch and always as a whole, also where fewer of it are missing or
    wanted: processors round differently by the size of a batch, and a picture must not depend on
        what else was there or asked for.
    """
    rank, world = job.processes.rank, job.processes.world
    paths = _paths(job, prompt)
    for start in range(rank * GROUP, len(paths), world * GROUP):
        absent = {
            index: path
            for index, path in enumerate(paths[start : start + GROUP], start)
            if not _is_whole(path)
        }
        if absent:
            indices = range(start, start + GROUP)
            for index, data in zip(indices, _draw(job, prompt, indices), strict=True):
                if index in absent:
                    yield absent[index], data


def _draw(job: Job, prompt: str, indices: Sequence[int]) -> Iterator[bytes]:
    """PNGs of the pictures with these numbers."""
    width, height = job.class_images.size
    prior = job.recipe.prior
    if prior.source == "transparent":
        yield from (_empty_picture(width, height) for _ in indices)
        return
    requests = [
        Request.of(
            prior,
            prompt=prompt,
            seed=prior.seed + index,
            width=width,
            height=height,
            clip_skip=job.recipe.text.clip_skip,
        )
        for index in indices
    ]
    for picture in generate(job.base, requests, batch=GROUP, origin=Origin(model=job.base.name)):
        yield png_bytes(picture)


def _empty_picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (width, height), (0, 0, 0, 0)).save(file, "PNG")
    return file.getvalue()


def _entry(path: Path) -> Entry:
    status = path.stat()
    return Entry(path.name, str(path), status.st_size, status.st_mtime_ns)


def _is_whole(path: Path) -> bool:
    return path.is_file() and not measure_file(_entry(path)).reason


def _record(path: Path, noun: str, prompt: str) -> Record:
    measured = measure_file(_entry(path))
    if measured.reason:
        raise DataError(
            f"{path}: the class image cannot be read ({measured.reason}). Start again: it is drawn "
            "anew."
        )
    return Record(
        locator=str(path),
        name=f"class images/{prompt}/{path.name}",
        role="prior",
        repeats=1,
        width=measured.width,
        height=measured.height,
        content=measured.content,
        captions=(prompt,),
        class_noun=noun,
    )

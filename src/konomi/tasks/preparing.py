"""From a recipe to a run that is ready to start: base, images, steps, method, caches."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from konomi.config.load import change_recipe, recipe_data, with_absolute_paths
from konomi.config.recipe import Recipe
from konomi.data.batch import Latents
from konomi.data.buckets import Assignment, assign, grid_for, parse_size
from konomi.data.crops import image_loader
from konomi.data.images import verify
from konomi.data.kohya_dataset import read_dataset_toml
from konomi.data.latent_cache import LatentCache
from konomi.data.loader import BatchStream, static_captions
from konomi.data.manifest import Finding, Manifest, Record
from konomi.data.scan_cache import VerifiedImages, cached_scan
from konomi.data.shards import Notice, Progress
from konomi.data.summary import DatasetSummary, dataset_summary
from konomi.data.text_cache import TextCache
from konomi.errors import DataError
from konomi.families.selectors import known_selectors
from konomi.hardware.precision import PRECISIONS, choose_precision, slow_precision_notes
from konomi.methods import method_of
from konomi.methods.denoising import check_objective
from konomi.methods.method import Method, Needs
from konomi.models.base import BaseModel
from konomi.models.load import load_base
from konomi.storage.home import cache_root, expanded
from konomi.tasks.attached import Attached, keep_attached, training_note
from konomi.tasks.data_split import (
    check_one_image,
    split_records,
    without_augmentation,
    without_repeats,
)
from konomi.tasks.findings import exclude_unfitting, move_triggers, note_enlarged
from konomi.tasks.likely_mistakes import likely_mistakes
from konomi.tasks.preview_notes import preview_notes
from konomi.tasks.prior import (
    ClassImages,
    class_images_of,
    identifier_notes,
    with_identifier_captions,
    with_prior,
)
from konomi.tasks.result_format import with_result_format
from konomi.tasks.unused_settings import Situation, unused_settings
from konomi.training.events import Prepared, Warned
from konomi.training.processes import Processes, find_processes
from konomi.training.tracking import chosen_trackers


@dataclass(frozen=True, slots=True)
class Job:
    """A run that has been looked at from all sides and not yet started."""

    recipe: Recipe
    """With everything filled in that a recipe may leave open."""
    base: BaseModel
    needs: Needs
    """What the method asks of base and data."""
    method: Method
    manifest: Manifest
    assignment: Assignment
    held_out: Assignment
    """Validation images; empty where nothing is validated."""
    references: tuple[Record, ...]
    """Images that were not trained on, for the evaluation; empty where there are none."""
    summary: DatasetSummary
    processes: Processes
    precision: torch.dtype
    attached: Attached = field(default_factory=Attached)
    """Adapters that stay on the base."""
    class_images: ClassImages = field(default_factory=ClassImages)
    """What is still to be made of the prior images; none once it is in the manifest."""
    notes: tuple[str, ...] = ()
    """What should be known before training, and does not stop it."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What should be known about the data: `check` shows these, and `train` says them."""
        return self.manifest.findings

    @property
    def total_steps(self) -> int:
        return self.summary.steps


def prepare(recipe: Recipe) -> Job:
    """Look at everything a run needs before any weight is loaded. Raises KonomiError."""
    chosen_trackers(recipe.run.trackers)
    processes = find_processes(recipe.run.device)
    precision = choose_precision(recipe.run.precision, processes.device)
    recipe = requested = _with_dataset_values(with_absolute_paths(recipe))
    base, attached, own_zero_snr = _open_base(recipe)
    recipe = _filled_in(recipe, base)
    method_type = method_of(recipe)
    needs = method_type.needs(recipe.method, base, recipe)
    recipe = with_result_format(recipe, needs, base)
    cache = cache_folder(recipe)
    recipe = with_identifier_captions(recipe, needs)
    manifest = move_triggers(cached_scan(recipe.data, cache), base, recipe, cache)
    check_one_image(needs, manifest.records)
    recipe = with_prior(recipe, needs, manifest.records, base)
    method = method_type(recipe.method, base, recipe)
    size = parse_size(recipe.data.resolution or str(base.resolution))
    split, grid = split_records(manifest.records, recipe, cache), grid_for(base.size_step)
    assignment = assign(split.training, size, recipe.data.buckets, grid)
    validation = move_triggers(Manifest(split.validation), base, recipe, cache).records
    held_out = assign(validation, size, recipe.data.buckets, grid)
    manifest = note_enlarged(exclude_unfitting(manifest, assignment, held_out), assignment)
    width, height = (side // base.size_step * base.size_step for side in size)
    class_images = class_images_of(recipe, split.training, (width, height))
    summary = dataset_summary(
        manifest,
        assignment,
        recipe.data,
        batch_size=recipe.run.batch_size,
        steps=_wanted_steps(recipe, method, split.training),
        epochs=recipe.run.epochs,
        class_images=class_images.total,
    )
    situation = Situation(
        requested=requested,
        recipe=recipe,
        needs=needs,
        records=assignment.records,
        summary=summary,
        precision=precision,
        casts_weights=base.casts_weights,
        num_processes=processes.world,
        drawn_class_images=class_images.total,
        clip_layer=base.clip_layer,
        text_traits=base.text_traits,
        has_convolutions="conv" in known_selectors(base.spec),
        zero_terminal_snr=own_zero_snr,
        process=base.process,
    )
    return Job(
        recipe=recipe,
        base=base,
        needs=needs,
        method=method,
        manifest=manifest,
        assignment=assignment,
        held_out=held_out,
        references=split.references,
        summary=summary,
        processes=processes,
        precision=precision,
        attached=attached,
        class_images=class_images,
        notes=(
            *base.notes,
            *attached.notes,
            *training_note(attached, whole_model=needs.makes == "model"),
            *identifier_notes(base, needs, split.training),
            *slow_precision_notes(precision, processes.device),
            *needs.notes,
            *split.notes,
            *_idle_notes(recipe.run.batch_size, processes.world),
            *unused_settings(situation),
            *preview_notes(recipe, base),
            *likely_mistakes(situation),
        ),
    )


def _open_base(recipe: Recipe) -> tuple[BaseModel, Attached, bool]:
    """The base with what stays attached to it, and whether its noise process ended in pure noise
    before the recipe asked for that.
    """
    base = load_base(recipe.base, vae=recipe.vae, prediction=recipe.prediction)
    attached = keep_attached(base, recipe.adapters)
    own_zero_snr = base.zero_terminal_snr
    check_objective(base, recipe.objective)
    if recipe.objective.zero_terminal_snr:
        # Previews and the saved file follow: a result that keeps silent is sampled wrongly.
        base.use_zero_terminal_snr()
    return base, attached, own_zero_snr


def open_stream(job: Job) -> Iterator[Prepared | Warned | BatchStream]:
    """Encode what can be encoded once, telling how far it is; the last thing yielded is the stream
    of batches.
    """
    recipe, base = job.recipe, job.base
    place(job)
    latents, text = _make_caches(job)
    if latents is None and job.processes.is_first:
        verify(
            job.manifest, workers=recipe.data.workers, verified=VerifiedImages(cache_folder(recipe))
        )
    # What lies on disk is built by the first process and only opened by the others; memory is
    # everyone's own.
    mine = [
        job.processes.is_first or kept == "memory"
        for kept in (recipe.data.cache.latents, recipe.data.cache.text)
    ]
    captions, complete = static_captions(job.assignment.records, recipe.data)
    yield from _build(
        job, job.assignment, latents if mine[0] else None, text if mine[1] else None, captions
    )
    job.processes.wait()
    if latents is not None and not mine[0]:
        latents.open()
    if text is not None and not mine[1]:
        text.open(captions)
    stream = BatchStream(
        job.assignment,
        recipe.data,
        batch_size=recipe.run.batch_size,
        seed=recipe.run.seed,
        latents=latents,
        text=text,
        pixels=job.needs.pixels,
        load_image=image_loader(recipe.data.images, job.base.latent_factor),
    )
    if recipe.memory.offload:
        if latents is not None and not job.needs.pixels:
            base.unload("vae")
        if text is not None and complete:
            base.unload(*base.text_encoders)
    yield stream


def held_out_stream(job: Job) -> BatchStream | None:
    """The validation images, one after another, from the same caches; None where there are none."""
    if not job.held_out.records:
        return None
    # The base and the method see the same pictures and words at every measurement.
    recipe = replace(job.recipe, data=without_augmentation(job.recipe.data))
    measured = tuple(without_repeats(record) for record in job.held_out.records)
    job = replace(job, recipe=recipe, held_out=replace(job.held_out, records=measured))
    latents, text = _make_caches(job)
    captions, _ = static_captions(measured, recipe.data)
    for _ in _build(job, job.held_out, latents, text, captions):
        pass
    return BatchStream(
        job.held_out,
        recipe.data,
        batch_size=1,
        seed=0,
        latents=latents,
        text=text,
        pixels=job.needs.pixels,
        load_image=image_loader(recipe.data.images, job.base.latent_factor),
    )


def place(job: Job) -> None:
    """Base on its device: frozen parts in the computation's format or a smaller one, trained ones
    in float32.
    """
    wanted = job.recipe.memory.storage_dtype
    storage = PRECISIONS[wanted] if wanted != "auto" and job.precision == torch.float32 else None
    needs = job.needs
    job.base.place(
        job.processes.device, job.precision, float32_parts=needs.float32_parts, storage=storage
    )


def cache_folder(recipe: Recipe) -> Path:
    """Where caches lie: the recipe's folder, or the system's usual place."""
    if recipe.data.cache.folder:
        return expanded(recipe.data.cache.folder)
    return cache_root()


def _with_dataset_values(recipe: Recipe) -> Recipe:
    """Resolution, batch size and the like from sd-scripts dataset files, where the recipe itself
    leaves its default.
    """
    for source in recipe.data.sources:
        if not source.path.endswith(".toml"):
            continue
        plain = recipe_data(recipe)
        blank = recipe_data(Recipe(base=recipe.base, method=recipe.method))
        for name, value in read_dataset_toml(source.path, source).recipe_values:
            section, *path = name.split(".")
            if _at(plain.get(section, {}), path) == _at(blank.get(section, {}), path):
                recipe = change_recipe(
                    recipe, [f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
                )
    return recipe


def _idle_notes(batch_size: int, processes: int) -> tuple[str, ...]:
    if batch_size >= processes:
        return ()
    idle = processes - batch_size
    return (
        f"run.batch_size is {batch_size} for {processes} processes together: {idle} idle in every "
        f"step. Set run.batch_size = {processes} or more, or start fewer.",
    )


def _at(section: Mapping[str, Any], path: list[str]) -> object:
    value: Any = section
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _filled_in(recipe: Recipe, base: BaseModel) -> Recipe:
    data = replace(recipe.data, resolution=recipe.data.resolution or str(base.resolution))
    name = recipe.run.name or next(
        (s.trigger or Path(s.path).stem for s in data.sources if s.role == "train"), ""
    )
    return replace(recipe, data=data, run=replace(recipe.run, name=_as_file_name(name) or "konomi"))


def _as_file_name(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_. " else "-" for c in name)
    return kept.strip(" .-").replace(" ", "-")[:80]


def _wanted_steps(recipe: Recipe, method: Method, training: tuple[Record, ...]) -> int:
    if recipe.run.steps or recipe.run.epochs:
        return recipe.run.steps
    return method.default_steps(sum(record.role == "train" for record in training))


def _make_caches(job: Job) -> tuple[LatentCache | None, TextCache | None]:
    """Caches as the recipe and the method allow: pixels each step rule out cached latents alone,
    training the text encoder rules out cached text.
    """
    recipe, base = job.recipe, job.base
    cache = recipe.data.cache
    folder = cache_folder(recipe)
    number_format = str(job.precision).removeprefix("torch.")
    latents = text = None
    if cache.latents != "off":
        latents = LatentCache(
            f"{base.fingerprint('vae')} {number_format}",
            recipe.data.images,
            folder=folder if cache.latents == "disk" else None,
        )
    if cache.text != "off" and not job.needs.trains_text:
        fingerprint = f"{base.fingerprint('text')} {number_format}"
        text = TextCache(fingerprint, recipe.text, folder=folder if cache.text == "disk" else None)
    return latents, text


def _build(
    job: Job,
    assignment: Assignment,
    latents: LatentCache | None,
    text: TextCache | None,
    captions: frozenset[str],
) -> Iterator[Prepared | Warned]:
    base, recipe = job.base, job.recipe

    def tell(what: str, news: Progress | Notice) -> Prepared | Warned:
        return (
            Prepared(what, news.done, news.total)
            if isinstance(news, Progress)
            else Warned(news.message)
        )

    if latents is not None:
        prepare_image = image_loader(recipe.data.images, base.latent_factor)
        # One at a time on the CPU makes values independent of what else was missing; a GPU wants
        # company.
        together = 1 if job.processes.device.type == "cpu" else 4
        encode = _encoder(base)
        workers = recipe.data.workers
        try:
            for news in latents.build(
                assignment, prepare_image, encode, batch_size=together, workers=workers
            ):
                yield tell("images", news)
        except DataError:
            # One image cannot be read: rather name all such at once than one in each attempt.
            verify(job.manifest, workers=workers)
            raise
    if text is not None:
        for news in text.build(captions, lambda words: base.encode_captions(words, recipe.text)):
            yield tell("captions", news)


def _encoder(base: BaseModel) -> Callable[[torch.Tensor], Latents]:
    def encode(pixels: torch.Tensor) -> Latents:
        return base.encode_images(pixels.to(base.device))

    return encode

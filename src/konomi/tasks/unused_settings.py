"""Settings that were asked for and do nothing in this run: each in one line, with the reason,
before the first step.

What belongs to one method is declared beside it (`Needs.unused`); here is what follows from the
recipe, the base and the images. A setting that a recipe leaves at its default is never named.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from konomi.config.changed_settings import changed_settings, written
from konomi.config.recipe import Recipe
from konomi.config.sections import CaptionConfig, SourceConfig
from konomi.data.captions import caption_varies, final_caption
from konomi.data.manifest import Record
from konomi.data.summary import DatasetSummary
from konomi.diffusion.process import Process
from konomi.hardware.precision import PRECISIONS
from konomi.methods.method import Needs
from konomi.models.architecture import TextTraits
from konomi.tasks.data_split import ENOUGH, holds_out_none
from konomi.tasks.preview_switch import SWITCH, previews_switched_off

Reasons = dict[str, str]
"""Path of a setting -> why it does nothing."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a run before it starts."""

    requested: Recipe
    """As it was written: what it leaves open is at its default."""
    recipe: Recipe
    """With everything filled in."""
    needs: Needs
    records: Sequence[Record]
    """Images to train on and prior images."""
    summary: DatasetSummary
    precision: torch.dtype
    casts_weights: bool
    """Whether the base can keep weights in another format than it computes in."""
    num_processes: int = 1
    drawn_class_images: int = 0
    text_traits: TextTraits | None = None
    """Of the base; None: not known."""
    has_convolutions: bool = True
    """Of the base's denoiser."""
    clip_layer: int = 0
    """The base's own, from the end; 0: not known."""
    zero_terminal_snr: bool = False
    """Of the base, before the recipe asked for it."""
    process: Process | None = None
    """The base's; None: not known."""

    @property
    def training(self) -> list[Record]:
        return [record for record in self.records if record.role == "train"]

    @property
    def has_prior(self) -> bool:
        """Whether anything speaks for the class."""
        images = self.drawn_class_images or any(record.role == "prior" for record in self.records)
        return bool(images) or self.recipe.prior.source == "prediction"


def unused_settings(run: Situation) -> tuple[str, ...]:
    """A line for each setting that differs from its default and has no effect."""
    changed = dict(changed_settings(run.requested))
    # Reasons are looked for where something was asked: some take a look at every caption.
    found = reasons(
        run, [section for section in _SECTIONS if any(path.startswith(section) for path in changed)]
    )
    return tuple(
        f"{path} = {written(changed[path])} does nothing in this run: {reason}"
        for path, reason in found.items()
        if path in changed
    )


def reasons(run: Situation, sections: Iterable[str] | None = None) -> Reasons:
    """All settings of the method and of `sections` (all by default) that have no effect, at their
    default or not.
    """
    found = dict(run.needs.unused)
    if run.needs.for_bare_images and all(
        record.captions or record.template for record in run.training
    ):
        reason = "every image has a caption, or its source a template, of its own."
        found |= dict.fromkeys(run.needs.for_bare_images, reason)
    for section in _SECTIONS if sections is None else sections:
        found |= _SECTIONS[section](run)
    return found


def _of_captions(run: Situation) -> Reasons:
    captions = run.recipe.data.captions
    found: Reasons = {}
    shuffles = any(
        captions.shuffle if record.shuffle is None else record.shuffle for record in run.training
    )
    if not shuffles and not captions.tag_dropout:
        found["data.captions.keep_tokens"] = "tags are neither shuffled nor dropped."
    for name, variation in (("shuffle", {"shuffle": True}), ("tag_dropout", {"tag_dropout": 0.5})):
        alone = replace(captions, dropout=0.0, tag_dropout=0.0, shuffle=False)
        varied = replace(alone, **variation)
        singles = [
            replace(record, captions=(c,))
            for record in run.training
            for c in record.captions or ("",)
        ]
        singles = [
            replace(one, captions=() if one.captions == ("",) else one.captions) for one in singles
        ]
        if not any(caption_varies(one, varied) for one in singles):
            held = f", with {captions.keep_tokens} kept in place" if captions.keep_tokens else ""
            tags = "more than one tag" if name == "shuffle" else "a tag to leave out"
            found[f"data.captions.{name}"] = (
                f"no caption has {tags} (divided by {captions.separator!r}){held}."
            )
    if captions.lines == "alternatives" and not any(
        len(record.captions) > 1 for record in run.records
    ):
        found["data.captions.lines"] = "no caption file has several lines."
    usual = replace(captions, separator=CaptionConfig().separator)
    texts = [caption for record in run.training for caption in record.captions]
    joined = any(
        final_caption(r, captions, None) != final_caption(r, usual, None) for r in run.training
    )
    if captions.separator and not joined and not any(captions.separator in text for text in texts):
        found["data.captions.separator"] = "no caption holds it, and no trigger is put before one."
    return found


def _of_images(run: Situation) -> Reasons:
    data = run.recipe.data
    found: Reasons = {}
    images, buckets = data.images, data.buckets
    if buckets.kind == "fixed":
        found |= {
            f"data.buckets.{name}": 'data.buckets.kind is "fixed".'
            for name in ("step", "min_side", "max_side")
        }
    if buckets.kind != "area":
        found["data.buckets.upscale"] = (
            'only data.buckets.kind = "area" can leave small images as they are.'
        )
    if not run.summary.images.any_cut:
        found["data.images.crop"] = (
            "every image has the shape of its bucket, so nothing is cut off."
        )
    if images.crop == "center":
        found["data.images.crops"] = 'data.images.crop is "center", which is always the same part.'
    elif data.cache.latents == "off":
        found["data.images.crops"] = "latents are not cached, so each time a new part is taken."
    if not run.recipe.objective.masked and images.alpha == "mask":
        found["data.images.alpha"] = "objective.masked is off, so no mask counts."
    if run.needs.trains_text:
        found["data.cache.text"] = (
            "what captions mean is being trained, so they are encoded in every step."
        )
    return found


def _of_sources(run: Situation) -> Reasons:
    found: Reasons = {}
    repeats = {record.repeats for record in run.training}
    by_steps = bool(run.recipe.run.steps) or not run.recipe.run.epochs
    for number, source in enumerate(run.recipe.data.sources):
        where = f"data.sources.{number}"
        mine = (
            [record for record in run.training if _is_from(record, source)]
            if source.template
            else []
        )
        if source.role == "train" and len(repeats) == 1 and by_steps:
            found[f"{where}.repeats"] = (
                "all images have the same number, and the length of the run is counted in steps, "
                "not in epochs."
            )
        if mine and all(_same_without(record, run.recipe, template="") for record in mine):
            found[f"{where}.template"] = "every image has a caption of its own."
    return found


def _is_from(record: Record, source: SourceConfig) -> bool:
    return (record.trigger, record.template) == (source.trigger, source.template)


def _same_without(record: Record, recipe: Recipe, **without: Any) -> bool:
    captions = recipe.data.captions
    return final_caption(record, captions, None) == final_caption(
        replace(record, **without), captions, None
    )


def _of_objective(run: Situation) -> Reasons:
    objective = run.recipe.objective
    found: Reasons = {}
    if objective.loss != "huber":
        found["objective.huber_delta"] = (
            f'objective.loss is "{objective.loss}"; only "huber" reads it.'
        )
    if objective.weighting != "min_snr":
        found["objective.snr_gamma"] = (
            f'objective.weighting is "{objective.weighting}"; only "min_snr" reads it.'
        )
    if run.recipe.data.images.alpha != "mask" and not any(
        record.mask or record.attention for record in run.records
    ):
        found["objective.masked"] = "no image has a mask."
    if run.zero_terminal_snr:
        found["objective.zero_terminal_snr"] = (
            "the base's file says so, and it is trained so in any case."
        )
    if run.process is not None:
        found |= run.process.unused(objective)
    if not run.has_prior:
        found["objective.prior_weight"] = (
            "there are no prior (class) images, and prior.source makes none."
        )
    return found


def _of_prior(run: Situation) -> Reasons:
    prior = run.recipe.prior
    found: Reasons = {}
    if prior.source != "generate":
        reason = f'prior.source is "{prior.source}", so no class image is drawn.'
        found |= {f"prior.{name}": reason for name in ("count", "steps", "guidance", "seed")}
    if prior.source in ("none", "images"):
        found["prior.prompt"] = "nothing is made or asked of the class (prior.source)."
    if all(record.class_noun or record.captions for record in run.training):
        found["prior.clip"] = "no class noun is missing."
    return found


def _of_optimizer(run: Situation) -> Reasons:
    optimizer = run.recipe.optimizer
    found: Reasons = {}
    schedule = "rates" if optimizer.rates else optimizer.schedule
    if schedule != "cosine_restarts":
        found["optimizer.cycles"] = 'only optimizer.schedule = "cosine_restarts" reads it.'
    if optimizer.schedule_steps == run.summary.steps:
        found["optimizer.schedule_steps"] = "the run is as long."
    elif (
        schedule in ("constant", "rates")
        and not 0 < optimizer.warmup < 1
        # Those have phases, whose shares are of that length.
        and run.recipe.method.kind not in ("pivotal", "imagic")
    ):
        found["optimizer.schedule_steps"] = (
            "neither optimizer.schedule nor optimizer.warmup depends on a length."
        )
    if schedule != "polynomial":
        found["optimizer.power"] = 'only optimizer.schedule = "polynomial" reads it.'
    if optimizer.kind == "adafactor":
        found["optimizer.betas"] = "adafactor has none."
    return found


def _of_run(run: Situation) -> Reasons:
    settings, total = run.recipe.run, run.summary.steps
    found: Reasons = {}
    if settings.steps:
        found["run.epochs"] = f"run.steps = {settings.steps} decides."
    if settings.save_every >= total:
        found["run.save_every"] = (
            f"the run has {total} steps, and the result is written at its end."
        )
    if settings.save_every_epochs * run.summary.steps_per_epoch >= total:
        found["run.save_every_epochs"] = (
            f"the run has {total} steps, and the result is written at its end."
        )
    if settings.checkpoint_every >= total:
        found["run.checkpoint_every"] = (
            f"the run has {total} steps, and a state is written at its end."
        )
    written = 1 if not settings.checkpoint_every else -(-total // settings.checkpoint_every)
    if written <= min(settings.keep_checkpoints, type(settings)().keep_checkpoints):
        found["run.keep_checkpoints"] = f"the run writes {written}."
    return found


def _of_memory(run: Situation) -> Reasons:
    memory = run.recipe.memory
    found: Reasons = {}
    batch = run.recipe.run.batch_size
    if batch == 1:
        found["memory.accumulation"] = (
            "run.batch_size is 1 and cannot be divided. Where other programs accumulate "
            f"{memory.accumulation} batches of 1, set run.batch_size = {memory.accumulation}: the "
            "images behind one optimiser step."
        )
    elif -(-batch // run.num_processes) == 1:
        found["memory.accumulation"] = f"run.batch_size = {batch} is one image for each process."
    cache = run.recipe.data.cache
    vae_stays = cache.latents == "off" or run.needs.pixels
    if vae_stays and (cache.text == "off" or run.needs.trains_text):
        found["memory.offload"] = "text encoder and VAE are needed in every step."
    if not run.has_convolutions:
        found["memory.channels_last"] = "this base's denoiser has no convolutions."
    if "denoiser" in run.needs.float32_parts:
        found["memory.storage_dtype"] = "the denoiser's weights are trained, and stay fp32."
    elif run.precision != torch.float32:
        name = next(word for word, dtype in PRECISIONS.items() if dtype == run.precision)
        found["memory.storage_dtype"] = (
            f"the run computes in {name}, and frozen weights are kept in it already."
        )
    elif not run.casts_weights:
        found["memory.storage_dtype"] = (
            "this base's denoiser is of an unusual kind, computed by diffusers' class."
        )
    return found


def _of_text(run: Situation) -> Reasons:
    text, traits = run.recipe.text, run.text_traits
    found: Reasons = {}
    if traits is not None:
        found |= traits.unused()
    if text.clip_skip == run.clip_layer:
        found["text.clip_skip"] = "it is the base's own choice."
    if text.max_tokens == 75 and "text.chunking" not in found:
        found["text.chunking"] = "captions have one chunk (text.max_tokens is 75)."
    captions = [final_caption(replace(r, captions=(c,)), run.recipe.data.captions,
    None) for r in run.records
                for c in r.captions]  # fmt: skip
    captions += [
        final_caption(record, run.recipe.data.captions, None)
        for record in run.records
        if not record.captions
    ]
    if not any(mark in caption for caption in captions for mark in ("(", "[", "{", "BREAK", "|")):
        reason = "no caption has brackets, BREAK or |; prompts of previews read them in any case."
        found.setdefault("text.emphasis", reason)
    return found


def _of_previews(run: Situation) -> Reasons:
    recipe = run.recipe
    if not recipe.run.preview_every:
        return {
            f"preview.{item.name}": "run.preview_every is 0: no previews."
            for item in fields(recipe.preview)
        }
    if recipe.run.preview_every == "auto" and previews_switched_off():
        reason = (
            f"the environment says {SWITCH}=off. run.preview_every = N draws them all the same."
        )
        return {f"preview.{item.name}": reason for item in fields(recipe.preview)}
    found: Reasons = {}
    if (
        not (run.zero_terminal_snr or recipe.objective.zero_terminal_snr)
        and not recipe.preview.guidance_rescale
    ):
        found["preview.guidance_rescale"] = (
            "it is the usual, as the base's noise does not end in pure noise."
        )
    if recipe.preview.guidance == 1:
        reason = "preview.guidance is 1, which switches guidance off."
        found |= dict.fromkeys(("preview.negative", "preview.guidance_rescale"), reason)
    return found


def _of_validation(run: Situation) -> Reasons:
    recipe = run.recipe
    if not recipe.run.validate_every:
        reason = "run.validate_every is 0: nothing is measured."
        return {f"validation.{item.name}": reason for item in fields(recipe.validation)}
    given = recipe.validation.path
    return {"validation.fraction": "validation.path names the images."} if given else {}


def _of_evaluation(run: Situation) -> Reasons:
    if run.recipe.run.validate_every:
        reason = "the images that run.validate_every measures are compared with, and no others."
        return {"evaluation.hold_out": reason}
    reason = f"no subject has {ENOUGH} different images, so all are trained on anyway."
    return {"evaluation.hold_out": reason} if holds_out_none(run.training) else {}


_SECTIONS: dict[str, Callable[[Situation], Reasons]] = {
    "data.captions.": _of_captions,
    "data.": _of_images,
    "data.sources.": _of_sources,
    "objective.": _of_objective,
    "prior.": _of_prior,
    "optimizer.": _of_optimizer,
    "run.": _of_run,
    "memory.": _of_memory,
    "text.": _of_text,
    "preview.": _of_previews,
    "validation.": _of_validation,
    "evaluation.": _of_evaluation,
}
"""Where a setting begins -> who knows of those that do nothing."""

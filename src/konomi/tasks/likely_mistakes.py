"""Settings that do what they say and most likely not what was wanted: a line each before the first
step.
"""

from collections.abc import Iterator

from konomi.tasks.unused_settings import Situation

LEARNED_BY_HEART = 300
"""Times an image is seen beyond which weights learn it by heart; DreamBooth's own figures stay
below."""
NO_FACTOR = 0.05
"""Prodigy's rate is a factor of about 1; what is below comes from recipes for Adam."""


def likely_mistakes(run: Situation) -> tuple[str, ...]:
    """One line each."""
    return (
        *_of_rates(run),
        *_of_averages(run),
        *_of_images(run),
        *_of_captions(run),
        *_of_the_class(run),
    )


def _of_rates(run: Situation) -> Iterator[str]:
    optimizer = run.requested.optimizer
    for name in ("learning_rate", "text_learning_rate"):
        rate = getattr(optimizer, name)
        if rate is None or f"optimizer.{name}" in run.needs.unused:
            continue
        if rate == 0:
            yield f"optimizer.{name} is 0: the weights it is for are not trained."
        elif optimizer.kind == "prodigy" and rate < NO_FACTOR:
            yield (
                f"optimizer.{name} is {rate:g}, which prodigy multiplies with the step size that "
                "it finds itself: next to nothing would be learned. Leave it out, or set it to 1."
            )
    if optimizer.warmup >= max(run.summary.steps, 1):
        yield (
            f"optimizer.warmup is {optimizer.warmup:g} steps, and the run has {run.summary.steps}: "
            "the learning rate never reaches its full height. A value below 1 is a share of the "
            "run."
        )


def _of_averages(run: Situation) -> Iterator[str]:
    optimizer = run.requested.optimizer
    if optimizer.kind == "schedule_free" and optimizer.ema_decay:
        yield (
            "optimizer.ema_decay averages the weights that schedule_free trains, in place of the "
            "average that it keeps itself and that is the better one. Set it to 0."
        )
    if optimizer.kind == "schedule_free" and (optimizer.schedule != "constant" or optimizer.rates):
        yield (
            "schedule_free is made to be used without optimizer.schedule and optimizer.rates; "
            "leave those out."
        )


def _of_images(run: Situation) -> Iterator[str]:
    batch, counts = run.recipe.run.batch_size, run.summary.bucket_counts
    if not counts:
        return
    seen = sum(counts.values())
    if batch > max(counts.values()):
        of = "an epoch has" if len(counts) == 1 else "the largest bucket has, in an epoch,"
        yield (
            f"run.batch_size is {batch}, and {of} {max(counts.values())} image(s): no step has "
            "more, and the rest of the batch is not filled up. Lower it, or raise "
            "data.sources.N.repeats."
        )
    epochs = run.summary.steps / max(run.summary.steps_per_epoch, 1)
    times = epochs * seen / max(len(run.training), 1)
    # To know its one picture by heart is what an edit is about.
    meant = _learns_words_alone(run) or bool(run.needs.edits_towards)
    if times > LEARNED_BY_HEART and not meant:
        yield (
            f"each image is seen {times:.0f} times: so often that it is memorised, pose and "
            "background included (overfitting). Use more images, or fewer steps (run.steps)."
        )
    images = run.recipe.data.images
    kept = images.crop == "random" and run.recipe.data.cache.latents != "off" and images.crops == 1
    if kept and run.summary.images.any_cut:
        yield (
            'data.images.crop is "random", and of each image one crop is cached for the whole run. '
            'data.images.crops = 8 keeps eight; data.cache.latents = "off" takes a new one each '
            "time."
        )


def _learns_words_alone(run: Situation) -> bool:
    """Such methods take thousands of steps for a few images, and have hardly room to learn one by
    heart.
    """
    return run.needs.makes == "embedding" or run.recipe.method.kind == "dreamartist"


def _of_captions(run: Situation) -> Iterator[str]:
    dropout = run.recipe.data.captions.dropout
    if dropout and run.needs.makes == "embedding":
        yield (
            f"data.captions.dropout is {dropout:g}: an empty caption does not hold the word, so "
            "nothing is learned from such images. Set it to 0."
        )


def _of_the_class(run: Situation) -> Iterator[str]:
    if run.recipe.objective.prior_weight == 0:
        if run.requested.prior.source not in ("auto", "none"):
            yield (
                f'objective.prior_weight is 0: what prior.source = "{run.requested.prior.source}" '
                "makes has no effect."
            )
        elif any(record.role == "prior" for record in run.records):
            yield "objective.prior_weight is 0: the prior (class) images have no effect."

"""How long a run will take: a few real steps of the real method on made-up examples, before
anything is encoded.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from konomi.data.batch import Batch, Examples, Latents
from konomi.data.buckets import Bucket
from konomi.tasks.preparing import Job, place
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

STEPS = 3


class SyntheticBatches:
    """Random latents in the size of the most common bucket, and captions as the images have
    them.
    """

    steps_per_epoch = STEPS

    def __init__(self, job: Job) -> None:
        bucket: Bucket = max(
            job.summary.bucket_counts, key=lambda size: job.summary.bucket_counts[size]
        )
        count = job.recipe.run.batch_size
        captions = [image.caption for image in job.summary.images[:count]]
        width, height = bucket
        base = job.base
        self.with_prior = bool(job.class_images.total) or any(
            r.role == "prior" for r in job.assignment.records
        )
        grid = (
            count,
            base.latent_channels,
            height // base.latent_factor,
            width // base.latent_factor,
        )
        words = tuple((captions * count)[:count])
        self.examples = Examples(
            names=("made up",) * count,
            sample_ids=torch.arange(count),
            captions=words,
            sizes=torch.tensor([[height, width, 0, 0, height, width]] * count),
            latents=Latents(torch.randn(grid), torch.zeros(grid)),
            pixels=torch.zeros(count, 3, height, width) if job.needs.pixels else None,
        )
        if not job.needs.trains_text:
            with torch.no_grad():
                text = base.encode_captions(words, job.recipe.text).to("cpu")
            self.examples = replace(self.examples, text=text)

    def iterate(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[Batch, ...]]:
        """The same examples in every step."""
        for _ in range(start, stop):
            yield (Batch(self.examples, self.examples if self.with_prior else None),)


def seconds_per_step(job: Job) -> float:
    """The fastest of the last steps; the first warms up. The base is changed by them: prepare the
    job anew to train.

    Raises RunError where even one step does not fit into memory.
    """
    place(job)
    stream = SyntheticBatches(job)
    trainer = Trainer(
        job.method.plan(),
        job.recipe,
        processes=job.processes,
        total_steps=STEPS,
        precision=job.precision,
    )
    times = []
    started = time.perf_counter()
    for _ in trainer.run(stream, stop=Stop(), sync_at=lambda step: True):
        now = time.perf_counter()
        times.append(now - started)
        started = now
    job.method.close()
    return min(times[1:])

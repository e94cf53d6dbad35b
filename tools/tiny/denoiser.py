"""Stage 5: the denoiser, trained by konomi's own method `full` on the rendered scenes.

First on 96-pixel pictures (half as many again a second), then on pairs without what is above and
below them (twice as many a second), then on 128-pixel ones. konomi caches latents and text states,
checkpoints, and resumes.
"""

from pathlib import Path
from typing import Literal

import konomi
from konomi.config.recipe import Recipe
from konomi.config.sections import (
    BucketConfig,
    CacheConfig,
    CaptionConfig,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
)
from konomi.methods.full import FullConfig
from konomi.training.events import Prepared, Step

Schedule = Literal["constant", "cosine"]


def denoiser_recipe(
    base: Path, images: tuple[Path, ...], output: Path, cache: Path, *, size: str, steps: int,
    batch: int,
    rate: float, schedule: Schedule, seed: int, device: str = "cpu",
) -> Recipe:  # fmt: skip
    """`size` is `data.resolution`, a side or WIDTHxHEIGHT. A tenth of the captions empty; the
    running average results.

    Debiased weights (Yu et al. 2023) give high noise levels, where it is decided what is drawn and
    in which style, as much to say as the others; with min-SNR weights they have next to nothing.
    """
    return Recipe(
        base=str(base),
        data=DataConfig(
            sources=tuple(SourceConfig(path=str(folder)) for folder in images),
            resolution=size,
            workers=0 if device == "cpu" else 4,
            captions=CaptionConfig(dropout=0.1),
            buckets=BucketConfig(kind="fixed"),
            cache=CacheConfig(folder=str(cache)),
        ),
        method=FullConfig(),
        objective=ObjectiveConfig(weighting="debiased"),
        optimizer=OptimizerConfig(
            learning_rate=rate, weight_decay=0.01, betas=(0.9, 0.99), schedule=schedule,
            warmup=0.03, ema_decay=0.998
        ),
        run=RunConfig(
            output=str(output), name="tiny", steps=steps, batch_size=batch, seed=seed,
            precision="bf16", device=device,
            checkpoint_every=250, keep_checkpoints=1,
        ),
        memory=MemoryConfig(offload=True),
    )  # fmt: skip


def train_denoiser(recipe: Recipe) -> Path:
    """Start, or go on where an earlier sitting stopped. Returns the single file of the result."""
    output = Path(recipe.run.output)
    result = output / "tiny.safetensors"
    done = max(
        (int(path.name.removeprefix("step-")) for path in output.glob("checkpoints/step-*")),
        default=0,
    )
    if done >= recipe.run.steps and result.exists():
        return result
    if done:
        events = konomi.resume(output, steps=recipe.run.steps)
    else:
        events = konomi.train(recipe, overwrite=True)
    for event in events:
        if isinstance(event, Prepared) and event.done % 1000 and event.done < event.total:
            continue
        if isinstance(event, Step) and event.step % 20:
            continue
        print(str(event)[:240], flush=True)
    return result

"""Stage 5: the denoiser, trained by konomi's own method `full` on the rendered scenes.

First on 96-pixel pictures (twice as many a second), then on 128-pixel ones, last on favourite concepts. konomi caches
latents and text states, checkpoints, and resumes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def plain_attention() -> Iterator[None]:
    """UNets made inside use plain products instead of the fused attention, whose backward pass is slow on the CPU in
    bfloat16 (40 instead of 33 pictures a second, on one core)."""
    from diffusers.models import attention_processor

    fused = attention_processor.AttnProcessor2_0
    attention_processor.AttnProcessor2_0 = attention_processor.AttnProcessor
    try:
        yield
    finally:
        attention_processor.AttnProcessor2_0 = fused


def denoiser_recipe(
    base: Path, images: Path | tuple[Path, ...], output: Path, cache: Path, *, side: int, steps: int, batch: int,
    rate: float, seed: int, device: str = "cpu", warmup: float = 0.05,
) -> Recipe:  # fmt: skip
    """Cosine from `rate`, min-SNR weights, a tenth of the captions empty, and the running average as result."""
    return Recipe(
        base=str(base),
        data=DataConfig(
            sources=tuple(SourceConfig(path=str(p)) for p in (images if isinstance(images, tuple) else (images,))),
            resolution=str(side),
            workers=0 if device == "cpu" else 4,
            captions=CaptionConfig(dropout=0.1),
            buckets=BucketConfig(kind="fixed"),
            cache=CacheConfig(folder=str(cache)),
        ),
        method=FullConfig(),
        objective=ObjectiveConfig(weighting="min_snr"),
        optimizer=OptimizerConfig(
            learning_rate=rate, weight_decay=0.01, betas=(0.9, 0.99), schedule="cosine", warmup=warmup, ema_decay=0.995
        ),
        run=RunConfig(
            output=str(output), name="tiny", steps=steps, batch_size=batch, seed=seed, precision="bf16", device=device,
            checkpoint_every=100, save_every=250,
        ),
        memory=MemoryConfig(offload=True),
    )  # fmt: skip


def train_denoiser(recipe: Recipe) -> Path:
    """Start, or go on where an earlier sitting stopped. Returns the single file of the result."""
    output = Path(recipe.run.output)
    result = output / "tiny.safetensors"
    done = max((int(path.name.removeprefix("step-")) for path in output.glob("checkpoints/step-*")), default=0)
    if done >= recipe.run.steps and result.exists():
        return result
    with plain_attention():
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

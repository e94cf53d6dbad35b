"""`check --run RUN --captions`: the captions of a run's training images, tried against each
other.
"""

from collections.abc import Generator
from pathlib import Path

from konomi.data.buckets import parse_size
from konomi.errors import RunError
from konomi.evaluation.caption_fit import (
    LEAST_IMAGES,
    CaptionFit,
    caption_excesses,
    deviations,
    is_wrong,
)
from konomi.tasks.evaluation_setup import setup_of_runs, training_captioned
from konomi.tasks.generating import load_base
from konomi.training.events import Event, Prepared, Warned

MOST = 200
"""Images that are looked at."""


def check_captions(
    run: str | Path, *, device: str = "auto"
) -> Generator[Event, None, tuple[CaptionFit, ...]]:
    """Which captions are not of their image, by the loss of the run's untouched base.

    run: the run folder.
    device: auto, cpu, cuda, mps, ...

    Yields progress; returns all images that were looked at, the worst first. Raises KonomiError:
    where images are too few or all have one caption there is nothing to compare.
    """
    setup = setup_of_runs([Path(run)])
    shown, records, notes = training_captioned(setup, MOST)
    if len(records) < LEAST_IMAGES or len(set(shown.captions)) < 2:
        raise RunError(
            f"{run}: captions are compared with each other, so at least {LEAST_IMAGES} images and "
            f"two different captions are needed; there are {len(records)} and "
            f"{len(set(shown.captions))}."
        )
    if len(setup.training) > len(records):
        notes = (*notes, f"{len(records)} of {len(setup.training)} images are looked at.")
    base = load_base(setup.base, vae=setup.vae or None, prediction=setup.prediction, device=device)
    yield from map(Warned, notes)
    assert setup.recipe is not None
    width, height = parse_size(setup.resolution or str(base.resolution))
    size = (
        max(width // base.size_step, 1) * base.size_step,
        max(height // base.size_step, 1) * base.size_step,
    )
    measuring = caption_excesses(base, setup.recipe, shown, size)
    while True:
        try:
            done, total = next(measuring)
        except StopIteration as ended:
            excesses: tuple[float, ...] = ended.value
            break
        yield Prepared("captions", done, total)
    found = [
        CaptionFit(record.name, record.locator, caption, excess, far, is_wrong(excess, far))
        for record, caption, excess, far in zip(
            records, shown.captions, excesses, deviations(excesses), strict=True
        )
    ]
    return tuple(sorted(found, key=lambda fit: (-fit.deviations, fit.name)))

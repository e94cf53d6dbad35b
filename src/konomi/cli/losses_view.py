"""What `konomi check --run RUN` shows: images whose loss is above what is to be expected, and
captions that are not of their image.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from konomi.cli.plain import json_text, label
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.evaluation.caption_fit import CaptionFit
    from konomi.training.events import Event


def print_losses(run: Path, *, as_json: bool) -> int:
    """One line for each such image, or JSON with all images that were judged. Returns 0."""
    from konomi.evaluation.images_that_hurt import image_losses

    images = image_losses(run)
    if as_json:
        print(json_text(images))
        return 0
    found = [image for image in images if image.hurts]
    for image in found:
        share, caption = round(100 * image.excess), label(image.caption)
        print(
            translated(
                f"{label(image.path)}: its loss is {share} % above what its timesteps and its "
                f"detail lead to expect ({image.sightings} sightings). Caption: {caption}"
            )
        )
    if found:
        print(
            translated(
                "Look at these: another subject, a caption of something else, or a damaged picture "
                "has such a loss."
            )
        )
    elif images:
        print(translated(f"None of {len(images)} images stands out."))
    else:
        print(
            translated(
                "Too few images were seen often enough to judge any: at least 5 images, 4 times "
                "each."
            )
        )
    return 0


def print_captions(run: Path, *, as_json: bool) -> int:
    """One line for each caption that fits its image worse than captions of other images do, or
    JSON with all of them. Returns 0.
    """
    from konomi.cli.progress import shown
    from konomi.tasks.caption_check import check_captions

    kept: list[tuple[CaptionFit, ...]] = []

    def to_the_end() -> Iterator["Event"]:
        kept.append((yield from check_captions(run)))

    events = to_the_end()
    for _ in events if as_json else shown(events):
        pass
    if as_json:
        print(json_text(kept[0]))
        return 0
    found = [fit for fit in kept[0] if fit.wrong]
    for fit in found:
        share, caption = round(100 * fit.excess), label(fit.caption)
        print(
            translated(
                f"{label(fit.path)}: the loss with its own caption is {share} % above that with "
                f"captions of other images. Caption: {caption}"
            )
        )
    if not found:
        print(translated(f"The captions of {len(kept[0])} images fit them, as far as the base "
                         "can tell."))  # fmt: skip
    return 0

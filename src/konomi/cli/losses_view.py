"""What `konomi check --run RUN` shows: images whose loss is above what is to be expected."""

from pathlib import Path

from konomi.cli.plain import json_text, label
from konomi.language import translated


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

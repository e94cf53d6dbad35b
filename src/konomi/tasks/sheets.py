"""All generated pictures on one sheet, each with what it was drawn from."""

from collections.abc import Sequence
from dataclasses import replace

from konomi.generation.fonts import unknown_note
from konomi.generation.grid import make_grid
from konomi.generation.request import Picture, Request


def sheet_of(pictures: Sequence[Picture]) -> Picture:
    """All pictures on one, each with its seed, and its prompt where there are several."""
    captions = _captions([picture.request for picture in pictures])
    image = make_grid([picture.image for picture in pictures], captions=captions)
    return replace(
        pictures[0],
        image=image,
        infotext=f"{pictures[0].infotext}, Sheet of: {len(pictures)} pictures",
    )


def sheet_notes(requests: Sequence[Request], grid: bool, batch: int) -> list[str]:
    """What was asked and needs more pictures than are drawn, or letters that no font has."""
    pictures, notes = len(requests), []
    if grid and pictures > 1:
        notes += unknown_note(_captions(requests), "the sheet of all pictures")
    if grid and pictures == 1:
        notes.append("--grid has no effect with one image. --count N generates several.")
    if batch > pictures:
        drawn = "one picture" if pictures == 1 else f"{pictures} pictures"
        notes.append(
            f"--batch {batch}: {drawn} in all, so no batch is as large. --count N draws more of "
            "each prompt."
        )
    return notes


def _captions(requests: Sequence[Request]) -> list[str]:
    several = len({request.prompt for request in requests}) > 1
    return [
        f"{request.prompt}, seed {request.seed}" if several else f"seed {request.seed}"
        for request in requests
    ]

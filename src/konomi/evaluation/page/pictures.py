"""Pictures put into a page, so that it needs no other file.

Smaller than they are on the disk, so that a page of a thousand can still be sent by mail: all of
one call share a budget of bytes, and the side of each follows from it.
"""

import base64
import io
import math
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from konomi.data.containers import read_bytes
from konomi.data.pixels import BadImageError, decode
from konomi.errors import DataError
from konomi.evaluation.page.content import Shown

LARGEST_SIDE = 512
SMALLEST_SIDE = 96
BYTES_PER_PIXEL = 0.25
"""Of a WebP of quality 85, for photographs with much in them."""
IN_TEXT = 4 / 3
"""Characters of base64 for a byte."""


def embedded(
    files: Iterable[str], *, beside: Path, budget: int, largest: int = LARGEST_SIDE
) -> dict[str, Shown]:
    """The pictures that can be read, by the name they were asked for.

    files: paths (relative ones from `beside`), or places in archives as manifests name them.
    beside: the folder of the page; what lies in it is linked at its full size as well.
    budget: bytes of the page that all of them may take.
    """
    names = list(dict.fromkeys(files))
    side = min(largest, _side_for(budget, len(names)))
    while True:
        shown = {name: one for name in names if (one := _shown(name, beside, side)) is not None}
        taken = sum(len(one.data) for one in shown.values())
        if taken <= budget or side <= SMALLEST_SIDE // 4:
            return shown
        # Noise and fine patterns take more than pictures do.
        side = min(int(side * math.sqrt(budget / taken) * 0.95), side - 1)


def _side_for(budget: int, count: int) -> int:
    pixels = budget / IN_TEXT / max(count, 1) / BYTES_PER_PIXEL
    return max(SMALLEST_SIDE, int(math.sqrt(pixels)))


def _shown(name: str, beside: Path, side: int) -> Shown | None:
    path = beside / name
    try:
        image, _ = decode(read_bytes(str(path)))
    except (DataError, BadImageError, ValueError):
        # Not there, or no picture: the page shows the others.
        return None
    factor = min(1.0, side / max(image.size))
    small = image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))),
        Image.Resampling.LANCZOS,
        reducing_gap=3.0,
    )
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85 if side > 160 else 92, method=3)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Shown(
        data=f"data:image/webp;base64,{text}",
        width=small.width,
        height=small.height,
        file=_address(path, beside),
    )


def _address(path: Path, beside: Path) -> str:
    """Relative to the page; empty for what lies elsewhere, also through a link."""
    try:
        inside = path.resolve().relative_to(beside.resolve())
    except (OSError, ValueError):
        return ""
    # With the dot, no name of a stranger's file can be taken for the scheme of an address.
    return "./" + quote(inside.as_posix(), errors="surrogateescape")

"""Images that hurt: those whose loss is above what their timesteps, and the detail in them, lead to
expect. Another subject and a caption that is not of the picture show in this way.

1. The logarithm of the loss over the timestep is fitted by locally weighted regression, robust
   against single sightings (LOWESS, Cleveland 1979, "Robust locally weighted regression and
   smoothing scatterplots"), and so is its spread. An image's residual is the mean of its sightings'
   distances from that curve, each weighted by the inverse square of the spread at its timestep.
2. Pictures with more detail have more loss, whatever they show: residuals are compared at equal
   detail, by the median of pairwise slopes (Theil 1950; Sen 1968) on the logarithm of the mean
   square difference between neighbouring cells.
3. An image is an outlier if it stands further from the lower four fifths of the others than the
   furthest of as many ordinary images does in 98 of 100 data sets: simulated, through all of
   step 2, with normal residuals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from konomi.config.parse import parse_json
from konomi.data.containers import read_bytes
from konomi.data.loader import image_number
from konomi.data.manifest import Record
from konomi.errors import FileFormatError, KonomiError, RunError
from konomi.storage.regular import check_regular
from konomi.storage.tensor_file import read_tensors
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.sample_losses import check_columns

Floats = NDArray[np.float64]

FALSE_ALARMS = 0.02
"""Share of ordinary data sets in which any image is listed."""
LEAST_EXCESS = 0.1
"""A loss less than this share above the expected one is not worth a look."""
LEAST_IMAGES, LEAST_SIGHTINGS = 5, 4
SIMULATIONS = 2000
_GRID = 48
_SPAN = 0.3
"""Share of the sightings behind each point of the curve."""
_SIDE = 32
_PAIRED = 32
"""Images whose pairs give the slope."""
MAX_BYTES = 64 * 2**20
MOST_LOOKED_AT = 2000
"""Images whose own detail is measured; of more, none is."""


@dataclass(frozen=True, slots=True)
class ImageLoss:
    """One training image, and how its loss compares."""

    name: str
    path: str
    """Where its bytes are: a file, or `CONTAINER::MEMBER`."""
    caption: str
    sightings: int
    excess: float
    """How much its loss is above the expected one, as a share: 0.3 is 30 %."""
    error: float
    """Standard error of the logarithm of 1 + excess."""
    chance: float
    """Share of ordinary data sets of this size whose worst image stands out as much."""
    hurts: bool


def outliers(run: Path) -> tuple[ImageLoss, ...]:
    """The images of a run that stand out, the worst first. Raises RunError where it has noted no
    losses.
    """
    return tuple(image for image in image_losses(run) if image.hurts)


def image_losses(run: Path) -> tuple[ImageLoss, ...]:
    """All images that were seen often enough to be judged, the worst first; none where there are
    too few. Raises RunError where the run has noted no losses.
    """
    sightings = read_sightings(run)
    records = {image_number(record): record for record in _records(run)}
    if not len(sightings["loss"]):
        return ()
    found = residuals(
        sightings["timestep"], np.log(sightings["loss"], dtype=np.float64), sightings["image"]
    )
    known = [(records[n], *values) for n, values in found.items() if n in records]
    known = [entry for entry in known if entry[3] >= LEAST_SIGHTINGS]
    if len(known) < LEAST_IMAGES:
        return ()
    # Reading very many pictures would take longer than it tells: there the spread says enough.
    looked_at = len(known) <= MOST_LOOKED_AT
    details = [_detail(record) if looked_at else 0.0 for record, _, _, _ in known]
    judged = judge(np.array([mean for _, mean, _, _ in known]), np.array(details))
    images = [
        ImageLoss(
            name=record.name,
            path=record.locator,
            caption=", ".join(record.captions[:1]),
            sightings=count,
            excess=float(np.expm1(above)),
            error=error,
            chance=chance,
            hurts=bool(
                chance <= FALSE_ALARMS and np.expm1(above) >= LEAST_EXCESS and above > 3 * error
            ),
        )
        for (record, _, error, count), (above, chance) in zip(known, judged, strict=True)
    ]
    return tuple(sorted(images, key=lambda image: (-image.excess, image.name)))


def read_sightings(run: Path) -> Mapping[str, NDArray[Any]]:
    """The columns of the newest checkpoint's `losses.safetensors`. Raises RunError where there is
    none, FileFormatError where it is damaged.
    """
    for checkpoint in reversed(checkpoint_paths(run / "checkpoints")):
        file = checkpoint / "losses.safetensors"
        if not file.is_file():
            continue
        if check_regular(file, "losses of a run") > MAX_BYTES:
            raise FileFormatError(f"{file}: is far too large for what it should hold.")
        tensors = read_tensors(file)
        check_columns(tensors)
        columns = {name: tensor.numpy() for name, tensor in tensors.items()}
        usable = np.isfinite(columns["timestep"]) & (columns["loss"] > 0)
        usable &= np.isfinite(columns["loss"])
        return {name: column[usable] for name, column in columns.items()}
    raise RunError(
        f"{run}: has noted no losses of single images: its checkpoints are gone, or of a version "
        "that did not note them."
    )


def _records(run: Path) -> list[Record]:
    """The training images of `manifest.jsonl`; lines that are none are left out."""
    file = run / "manifest.jsonl"
    names = {field.name for field in fields(Record)}
    found = []
    try:
        check_regular(file, "list of a run's images")
        with file.open("rb") as lines:
            for line in lines:
                entry = _json(line)
                if isinstance(entry, dict) and "content" in entry and set(entry) <= names:
                    found.append(_record(entry))
    except (OSError, TypeError) as damage:
        raise RunError(f"{file}: cannot be read, so no image can be named.") from damage
    return [record for record in found if record.role == "train"]


def _json(line: bytes) -> object:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _record(entry: dict[str, Any]) -> Record:
    captions = entry.get("captions")
    listed = captions if isinstance(captions, list) else []
    return Record(**(entry | {"captions": tuple(str(caption) for caption in listed)}))


def residuals(
    timesteps: Floats, log_losses: Floats, images: NDArray[np.int64]
) -> dict[int, tuple[float, float, int]]:
    """Image -> mean distance from the curve, its standard error, number of sightings."""
    distance = log_losses - lowess(timesteps, log_losses, robust=3)
    # The mean of a normal variable's absolute value is sqrt(2 / pi) of its deviation.
    spread = np.sqrt(np.pi / 2) * lowess(timesteps, np.abs(distance), robust=1)
    weight = 1 / np.maximum(spread, 1e-3) ** 2
    found = {}
    for image in np.unique(images):
        mine = images == image
        total = weight[mine].sum()
        mean = float((weight[mine] * distance[mine]).sum() / total)
        found[int(image)] = (mean, float(1 / np.sqrt(total)), int(mine.sum()))
    return found


def lowess(x: Floats, y: Floats, *, robust: int) -> Floats:
    """A smooth curve through (x, y), float64 [N] at the same places: weighted straight lines at 48
    places, the nearest 30 % of the points behind each, with `robust` rounds of bisquare weights.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    places = np.unique(np.quantile(x, np.linspace(0, 1, _GRID)))
    trust = np.ones_like(y)
    near = max(2, int(np.ceil(_SPAN * len(x))))
    curve = np.full_like(y, y.mean())
    for last in range(robust + 1):
        heights = np.array([_line_at(place, x, y, trust, near) for place in places])
        curve = np.interp(x, places, heights)
        if last < robust:
            far = (y - curve) / max(6 * float(np.median(np.abs(y - curve))), 1e-12)
            trust = np.clip(1 - far**2, 0, None) ** 2
    return curve


def _line_at(place: float, x: Floats, y: Floats, trust: Floats, near: int) -> float:
    distance = np.abs(x - place)
    reach = max(float(np.partition(distance, near - 1)[near - 1]), 1e-9) * 1.0001
    weight = trust * np.clip(1 - (distance / reach) ** 3, 0, None) ** 3
    total = weight.sum()
    if total <= 0:
        return float(np.median(y))
    middle, height = (weight * x).sum() / total, (weight * y).sum() / total
    width = (weight * (x - middle) ** 2).sum()
    slope = (weight * (x - middle) * (y - height)).sum() / width if width > 1e-12 * total else 0.0
    return float(height + slope * (place - middle))


def judge(means: Floats, details: Floats, *, seed: int = 0) -> list[tuple[float, float]]:
    """For each image how far its mean is above that of others of its detail, and the chance that
    the worst of ordinary images stands out as much.
    """
    rounds = min(SIMULATIONS, max(200, 2_000_000 // len(means)))
    ordinary = np.random.default_rng(seed).standard_normal((rounds, len(means)))
    worst = standing_out(at_equal_detail(ordinary, details)).max(1)
    above = at_equal_detail(means[None], details)
    chances = [(1 + (worst >= score).sum()) / (1 + rounds) for score in standing_out(above)[0]]
    return [(float(a), float(chance)) for a, chance in zip(above[0], chances, strict=True)]


def standing_out(values: Floats) -> Floats:
    """Distance of each from the mean of the lower four fifths of its row, in their deviations;
    [R, n] -> [R, n].
    """
    count = values.shape[1]
    lower = np.sort(values, axis=1)[:, : count - max(1, count // 5)]
    spread = np.maximum(lower.std(axis=1, ddof=1), 1e-9)
    return np.asarray((values - lower.mean(1)[:, None]) / spread[:, None])


def at_equal_detail(means: Floats, details: Floats) -> Floats:
    """Each row without what detail explains, and around 0; [R, n] -> [R, n]."""
    known = np.isfinite(details)
    details = np.where(known, details, np.median(details[known]) if known.any() else 0.0)
    count = len(details)
    few = np.linspace(0, count - 1, min(count, _PAIRED)).astype(int)
    first, second = (few[side] for side in np.triu_indices(len(few), 1))
    apart = np.abs(details[first] - details[second]) > 1e-6
    first, second = first[apart], second[apart]
    slopes = np.zeros(len(means))
    if len(first):
        pairs = (means[:, first] - means[:, second]) / (details[first] - details[second])
        slopes = np.maximum(0.0, np.median(pairs, axis=1))
    left = means - slopes[:, None] * (details - np.median(details))
    return np.asarray(left - np.median(left, axis=1)[:, None])


def _detail(record: Record) -> float:
    """Logarithm of the mean square difference between neighbouring cells of a 32x32 grid."""
    try:
        with Image.open(BytesIO(read_bytes(record.locator))) as image:
            image.draft("RGB", (4 * _SIDE, 4 * _SIDE))
            cells = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    except (OSError, ValueError, KonomiError, Image.DecompressionBombError):
        # It may be gone since; it is then taken for one like most.
        return float("nan")
    grid = np.asarray(cells, dtype=np.float64) / 255
    square = (np.diff(grid, axis=0) ** 2).mean() + (np.diff(grid, axis=1) ** 2).mean()
    return float(np.log(square + 1e-6))

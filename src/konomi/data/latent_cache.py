"""Encoded images: mean and deviation of the VAE's distribution for every crop of every image, and
the loss mask.

A row is keyed by the file's content, the bucket, the crop, the handling of transparency and the
separate mask's state; the encoder's fingerprint and the stored number format name the folder.
float32 is stored by default: a run from the cache then equals one that encodes in every step, bit
for bit. At 128 KiB for 512x512 pixels, 10,000 images take 1.3 GB; float16 halves that with a
relative error of 5e-4, far below the VAE's own deviation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from konomi.config.sections import ImageConfig
from konomi.data.batch import Latents
from konomi.data.buckets import Assignment, Bucket
from konomi.data.containers import split_locator
from konomi.data.crops import Crop, LoadImage, PreparedImage, cached_crop, num_crops
from konomi.data.manifest import Record
from konomi.data.prefetch import prefetch
from konomi.data.shards import Notice, Progress, ShardStore, digest
from konomi.errors import DataError, ModelError, RunError, printable
from konomi.hardware.garbage_collection import gc_paused

EncodeImages = Callable[[Tensor], Latents]
"""Pixels, float32 [B, 3, H, W] from -1 to 1 on the CPU -> scaled latents, anywhere. Moves them
itself."""


@dataclass(frozen=True, slots=True)
class CachedImage:
    """One row: views of the cache, not to be written to."""

    mean: Tensor
    """Float [C, h, w] in the stored format."""
    std: Tensor
    sizes: Tensor
    """Int64 [6]."""
    mask: Tensor | None
    """Float32 [1, h, w]."""


class _Job(NamedTuple):
    """One row to be there. A tuple: it is made for every image at every start."""

    record: Record
    bucket: Bucket
    crop: Crop
    number: int
    """Of the crop."""
    key: str


class LatentCache:
    """Latents by image and crop, on disk (`folder`) or in memory (None).

    `fingerprint` must tell everything the values depend on: weights and settings of the VAE and
    the number format it computes in.
    """

    def __init__(
        self,
        fingerprint: str,
        images: ImageConfig,
        *,
        folder: Path | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.images = images
        self.dtype = dtype
        self._store = ShardStore(
            None if folder is None else folder / f"latents-{digest(fingerprint, dtype)[:16]}"
        )
        self._mask_states: dict[str, str] = {}
        self._transform = f"{images.alpha} {images.background.lower()}"

    def open(self) -> list[str]:
        """Learn what is on disk, without building: for processes other than the one that built.
        Returns warnings.
        """
        return [notice.message for notice in self._store.open()]

    def get(self, record: Record, bucket: Bucket, crop: Crop) -> CachedImage:
        """Raises RunError for an image that was not built, or whose row is damaged."""
        try:
            row = self._store.get(self._key(record, bucket, crop))
        except KeyError:
            raise RunError(
                f"{record.name}: not in the cache of encoded images. Start again, it is then added."
            ) from None
        return CachedImage(row["mean"], row["std"], row["sizes"], row.get("mask"))

    def build(
        self,
        assignment: Assignment,
        load_image: LoadImage,
        encode: EncodeImages,
        *,
        batch_size: int = 1,
        workers: int = 0,
    ) -> Iterator[Progress | Notice]:
        """Encode what is missing, stale or damaged; opens no image when nothing is.

        Yields progress over all rows, and notices. Closing it, or Ctrl-C, keeps what is done.
        Images are encoded `batch_size` at a time within a bucket, fewer where memory does not
        allow it; `batch_size` 1 makes values independent of what else was missing.

        Raises DataError or ModelError naming the file that cannot be read or encodes to NaN,
        RunError for the disk.
        """
        yield from self._store.open()
        jobs = self._jobs(assignment)
        yield from self._store.verify(job.key for job in jobs)
        missing = sorted(
            (job for job in jobs if job.key not in self._store), key=lambda job: job.bucket
        )
        stale = len(
            {job.record.name for job in missing if self._store.knows_origin(self._origin(job))}
        )
        if stale:
            images = "1 image has" if stale == 1 else f"{stale} images have"
            yield Notice(f"{images} changed since being encoded; encoded again.")
        done = len(jobs) - len(missing)
        yield Progress(done, len(jobs))
        prepared = prefetch(
            partial(_load_image, load_image),
            missing,
            workers=workers,
            depth=2 * max(batch_size, workers),
        )
        try:
            batch: list[tuple[_Job, PreparedImage]] = []
            for position, (job, image) in enumerate(zip(missing, prepared)):
                batch.append((job, image))
                last = position + 1 == len(missing) or missing[position + 1].bucket != job.bucket
                if len(batch) < batch_size and not last:
                    continue
                self._encode(batch, encode)
                done += len(batch)
                batch = []
                yield Progress(done, len(jobs))
        except (GeneratorExit, KeyboardInterrupt, DataError, ModelError):
            self._store.flush()
            raise
        finally:
            prepared.close()
        self._store.flush()

    @gc_paused()
    def _jobs(self, assignment: Assignment) -> list[_Job]:
        jobs: dict[str, _Job] = {}
        for record, bucket in zip(assignment.records, assignment.buckets, strict=True):
            for index in range(num_crops(self.images)):
                crop = cached_crop(self.images, record.content, index)
                key = self._key(record, bucket, crop)
                jobs[key] = _Job(record, bucket, crop, index, key)
        return list(jobs.values())

    def _origin(self, job: _Job) -> str:
        return digest(
            job.record.locator, job.bucket, job.number, self.images.crop, self._transform
        )[:16]

    def _key(self, record: Record, bucket: Bucket, crop: Crop) -> str:
        mask = self._mask_state(record.mask) if record.mask else ""
        if record.attention:
            mask = f"{mask} attention {self._mask_state(record.attention)}"
        return digest(record.content, bucket, crop.x, crop.y, crop.flip, self._transform, mask)

    def _mask_state(self, locator: str) -> str:
        """A separate mask is not opened to see whether it changed: size and time of its file
        tell.
        """
        state = self._mask_states.get(locator)
        if state is None:
            container, member = split_locator(locator)
            try:
                status = Path(container).stat()
            except OSError as error:
                raise DataError(
                    f"{printable(locator)}: the mask cannot be read ({error.strerror})."
                ) from error
            state = f"{member} {status.st_size} {status.st_mtime_ns}"
            self._mask_states[locator] = state
        return state

    def _encode(self, batch: list[tuple[_Job, PreparedImage]], encode: EncodeImages) -> None:
        latents = _encode_resilient(
            [image.pixels for _, image in batch],
            [printable(job.record.name) for job, _ in batch],
            encode,
        )
        for number, (job, image) in enumerate(batch):
            row = {
                "mean": latents.mean[number].to(self.dtype),
                "std": latents.std[number].to(self.dtype),
            }
            if not all(bool(torch.isfinite(tensor).all()) for tensor in row.values()):
                raise ModelError(
                    f"{printable(job.record.name)}: the VAE turns this image into NaN or infinity. "
                    "Look at the image; if others fail too, the VAE needs float32 (run.precision = "
                    "'fp32') or is damaged."
                )
            row["sizes"] = torch.tensor(image.sizes, dtype=torch.int64)
            if image.mask is not None:
                row["mask"] = image.mask
            self._store.put(job.key, self._origin(job), row)


def _load_image(load_image: LoadImage, job: _Job) -> PreparedImage:
    return load_image(job.record, job.bucket, job.crop)


def _encode_resilient(
    pixels: Sequence[Tensor], names: Sequence[str], encode: EncodeImages
) -> Latents:
    """Encode; a batch that does not fit into memory, or in which an image fails, is halved until
    the one is found.
    """
    try:
        with torch.no_grad():
            latents = encode(torch.stack(list(pixels)))
        return Latents(latents.mean.cpu(), latents.std.cpu())
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            raise ModelError(
                f"{names[0]}: no memory to encode a single image. Lower data.resolution, or free "
                "the device's memory."
            ) from error
    except ModelError as error:
        if len(pixels) == 1:
            raise ModelError(f"{names[0]}: {error}") from error
    half = len(pixels) // 2
    first = _encode_resilient(pixels[:half], names[:half], encode)
    second = _encode_resilient(pixels[half:], names[half:], encode)
    return Latents(torch.cat([first.mean, second.mean]), torch.cat([first.std, second.std]))

"""Caches: exact, lazy, and safe against damage, change, interruption and full disks."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from konomi.config.sections import BucketConfig, ImageConfig
from konomi.data.batch import Latents
from konomi.data.buckets import Assignment, assign
from konomi.data.crops import Crop, LoadImage, cached_crop, image_loader, num_crops
from konomi.data.latent_cache import LatentCache
from konomi.data.manifest import Record
from konomi.data.shards import Notice, Progress
from konomi.errors import DataError, ModelError, RunError

IMAGES = ImageConfig()


class Encoder:
    """Stands for a VAE: means over 8x8 cells. Counts what it is asked."""

    def __init__(self) -> None:
        self.images = 0
        self.batches: list[int] = []

    def __call__(self, pixels: Tensor) -> Latents:
        self.images += len(pixels)
        self.batches.append(len(pixels))
        mean = functional.avg_pool2d(pixels, 8)
        return Latents(
            torch.cat([mean, mean[:, :1] * 2], dim=1),
            torch.full((len(pixels), 4, *mean.shape[2:]), 0.125),
        )


def no_encoder(_: Tensor) -> Latents:
    raise AssertionError("nothing was to be encoded")


def no_image(*_: object) -> object:
    raise AssertionError("no image was to be opened")


def save_image(path: Path, width: int, height: int, seed: int, *, alpha: bool = False) -> Record:
    values = np.random.default_rng(seed).integers(
        0, 256, (height, width, 4 if alpha else 3), dtype=np.uint8
    )
    Image.fromarray(values).save(path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return Record(
        locator=str(path),
        name=path.name,
        role="train",
        repeats=1,
        width=width,
        height=height,
        content=content,
    )


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = [(64, 64), (80, 48), (64, 64), (48, 80), (70, 64), (64, 64)]
    return [save_image(folder / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]


def assigned(records: Sequence[Record]) -> Assignment:
    return assign(records, (64, 64), BucketConfig())


def make(
    folder: Path | None, *, fingerprint: str = "vae", images: ImageConfig = IMAGES
) -> LatentCache:
    return LatentCache(fingerprint, images, folder=folder)


def build(
    cache: LatentCache,
    records: Sequence[Record],
    encode: object = None,
    load_image: LoadImage | None = None,
    **options: int,
) -> list[Progress | Notice]:
    encode = encode or Encoder()
    load_image = load_image or image_loader(cache.images)
    return list(cache.build(assigned(records), load_image, encode, **options))  # type: ignore[arg-type]


def notices(events: Sequence[Progress | Notice]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def check_exact(cache: LatentCache, records: Sequence[Record]) -> None:
    """Every row equals what encoding now gives, bit for bit."""
    assignment = assigned(records)
    for record, bucket in zip(assignment.records, assignment.buckets):
        for index in range(num_crops(cache.images)):
            crop = cached_crop(cache.images, record.content, index)
            image = image_loader(cache.images)(record, bucket, crop)
            expected = Encoder()(image.pixels[None])
            row = cache.get(record, bucket, crop)
            torch.testing.assert_close(row.mean, expected.mean[0], rtol=0, atol=0)
            torch.testing.assert_close(row.std, expected.std[0], rtol=0, atol=0)
            assert row.sizes.tolist() == list(image.sizes)
            assert (row.mask is None) == (image.mask is None)
            if image.mask is not None and row.mask is not None:
                torch.testing.assert_close(row.mask, image.mask, rtol=0, atol=0)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 2)])
def test_rows_equal_fresh_encodings(
    records: list[Record], tmp_path: Path, on_disk: bool, batch_size: int, workers: int
) -> None:
    encoder = Encoder()
    cache = make(tmp_path / "cache" if on_disk else None)
    events = build(cache, records, encoder, batch_size=batch_size, workers=workers)
    assert encoder.images == 6 and max(encoder.batches) == batch_size
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done[0] == 0 and done[-1] == 6 and done == sorted(done)
    check_exact(cache, records)
    assert bool(shards(tmp_path)) == on_disk


def test_second_run_opens_no_image(records: list[Record], tmp_path: Path) -> None:
    build(make(tmp_path), records)
    assignment = assigned(records)
    for record in records:
        Path(record.locator).unlink()
    cache = make(tmp_path)
    assert build(cache, records, no_encoder, no_image) == [Progress(6, 6)]  # type: ignore[arg-type]
    other_process = make(tmp_path)
    assert other_process.open() == []
    row = other_process.get(assignment.records[0], assignment.buckets[0], Crop())
    torch.testing.assert_close(
        row.mean, cache.get(assignment.records[0], assignment.buckets[0], Crop()).mean
    )


def test_flips_crops_and_masks(tmp_path: Path) -> None:
    records = [save_image(tmp_path / f"{i}.png", 96, 64, seed=i, alpha=i > 0) for i in range(3)]
    images = ImageConfig(crop="random", crops=3, flip=True, alpha="mask")
    cache = make(tmp_path / "cache", images=images)
    encoder = Encoder()
    build(cache, records, encoder, batch_size=4)
    assert encoder.images == 3 * 6
    check_exact(cache, records)
    again = make(tmp_path / "cache", images=images)
    build(again, records, no_encoder, no_image)  # type: ignore[arg-type]
    check_exact(again, records)
    crops = [cached_crop(images, records[0].content, index) for index in range(6)]
    assert len(set(crops)) == 6 and sum(crop.flip for crop in crops) == 3


@pytest.mark.parametrize(("field", "mark"), [("mask", "-masklabel"), ("attention", "_att")])
def test_a_separate_mask_belongs_to_the_key(tmp_path: Path, field: str, mark: str) -> None:
    record = save_image(tmp_path / "a.png", 64, 64, seed=0)
    mask = tmp_path / f"a{mark}.png"
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(mask)
    record = replace(record, **{field: str(mask)})  # type: ignore[arg-type]
    build(make(tmp_path / "cache"), [record])
    Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(32), (64, 1))).save(mask)
    os.utime(mask, ns=(1, 1))
    cache = make(tmp_path / "cache")
    assert "1 image has changed" in notices(build(cache, [record]))[0]
    check_exact(cache, [record])


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "another vae"},
        {"images": ImageConfig(background="#000000")},
        {"images": ImageConfig(alpha="mask")},
        {"images": ImageConfig(crop="random")},
    ],
)
def test_another_encoder_or_transform_shares_nothing(
    records: list[Record], tmp_path: Path, other: dict[str, object]
) -> None:
    build(make(tmp_path), records)
    encoder = Encoder()
    events = build(make(tmp_path, **other), records, encoder)  # type: ignore[arg-type]
    assert encoder.images == 6
    assert notices(events) == [], "a changed recipe is not a changed image"


def test_changed_image_is_encoded_again_with_a_warning(
    records: list[Record], tmp_path: Path
) -> None:
    build(make(tmp_path / "cache"), records)
    records[2] = save_image(Path(records[2].locator), 64, 64, seed=99)
    encoder = Encoder()
    cache = make(tmp_path / "cache")
    events = build(cache, records, encoder)
    assert encoder.images == 1
    assert notices(events) == ["1 image has changed since being encoded; encoded again."]
    check_exact(cache, records)


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    if kind == "cut":
        data = data[: len(data) - 100]
    elif kind == "empty":
        data = bytearray()
    elif kind == "zeros":
        data = bytearray(len(data))
    elif kind == "length":
        data[3] ^= 0x40
    elif kind == "keys":
        position = data.index(b'"keys":"') + 12
        data[position] = ord("0") if data[position] != ord("0") else ord("1")
    elif kind == "tensor":
        data[8 + header + 700] ^= 0x01
    elif kind == "checksum":
        names = json.loads(data[8 : 8 + header])
        data[8 + header + names["crc32"]["data_offsets"][0]] ^= 0x80
    elif kind == "page":
        data = bytearray(b"<!DOCTYPE html><html>no such file</html>")
    path.write_bytes(data)


@pytest.mark.parametrize(
    "kind", ["cut", "empty", "zeros", "length", "keys", "tensor", "checksum", "page"]
)
def test_damaged_shard_is_rebuilt_with_a_warning(
    records: list[Record], tmp_path: Path, kind: str
) -> None:
    build(make(tmp_path / "cache"), records)
    victim = shards(tmp_path / "cache")[0]
    damage(victim, kind)
    encoder = Encoder()
    cache = make(tmp_path / "cache")
    events = build(cache, records, encoder)
    assert (
        len(notices(events)) == 1
        and "damaged" in notices(events)[0]
        and victim.name in notices(events)[0]
    )
    assert 0 < encoder.images < 6, "only what lay in the damaged shard"
    check_exact(cache, records)
    again = make(tmp_path / "cache")
    assert notices(build(again, records, no_encoder)) == []
    check_exact(again, records)


def test_no_single_flipped_bit_reaches_training(records: list[Record], tmp_path: Path) -> None:
    """Every bit of the header's bytes in turn is too many; a spread over header, checksums and
    data.
    """
    build(make(tmp_path / "cache"), records[:1])
    (path,) = shards(tmp_path / "cache")
    intact = path.read_bytes()
    header = 8 + int.from_bytes(intact[:8], "little")
    positions = [
        *range(0, header, 7),
        *range(header, len(intact), len(intact) // 25),
        len(intact) - 1,
    ]
    for number, position in enumerate(positions):
        data = bytearray(intact)
        data[position] ^= 1 << number % 8
        path.write_bytes(data)
        cache = make(tmp_path / "cache")
        build(cache, records[:1])
        check_exact(cache, records[:1])
        assert len(shards(tmp_path / "cache")) == 1


def test_damage_found_while_training_names_the_file_and_the_way_out(
    records: list[Record], tmp_path: Path
) -> None:
    build(make(tmp_path / "cache"), records)
    late = make(tmp_path / "cache")
    assert late.open() == []
    victims = shards(tmp_path / "cache")
    for victim in victims:
        damage(victim, "tensor")
    with pytest.raises(RunError, match=r"does not match its checksum.*start again"):
        check_exact(late, records)
    assert len(shards(tmp_path / "cache")) == len(victims) - 1


@pytest.mark.parametrize("how", ["closed", "failed", "interrupted"])
def test_interrupted_build_goes_on(records: list[Record], tmp_path: Path, how: str) -> None:
    encoder = Encoder()
    load_image = image_loader(IMAGES)
    count = 0

    def failing(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise {"failed": DataError("3.png: broken"), "interrupted": KeyboardInterrupt()}[how]
        return load_image(*arguments)  # type: ignore[arg-type]

    cache = make(tmp_path / "cache")
    if how == "closed":
        building = cache.build(assigned(records), load_image, encoder)
        for event in building:
            if event == Progress(3, 6):
                break
        building.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises((DataError, KeyboardInterrupt)):
            build(cache, records, encoder, failing)  # type: ignore[arg-type]
    assert encoder.images == 3
    rest = Encoder()
    again = make(tmp_path / "cache")
    events = build(again, records, rest)
    assert rest.images == 3 and events[0] == Progress(3, 6)
    check_exact(again, records)
    assert all(
        path.suffix == ".safetensors" for path in (tmp_path / "cache").rglob("*") if path.is_file()
    )


def test_a_full_disk_is_one_clear_line(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("konomi.storage.tensor_file.write_all", full)
    with pytest.raises(RunError, match=r"disk is full.*data\.cache"):
        build(make(tmp_path / "cache"), records)
    monkeypatch.undo()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    cache = make(tmp_path / "cache")
    build(cache, records)
    check_exact(cache, records)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_names_the_image_and_is_never_kept(
    records: list[Record], tmp_path: Path, value: float
) -> None:
    def poisoned(pixels: Tensor) -> Latents:
        latents = Encoder()(pixels)
        if pixels.shape[2:] == (80, 48):
            latents.mean[0, 1, 2, 2] = value
        return latents

    with pytest.raises(ModelError, match=r"3\.png.*NaN"):
        build(make(tmp_path / "cache"), records, poisoned)
    rest = Encoder()
    build(make(tmp_path / "cache"), records, rest)
    assert rest.images >= 1
    assert all(torch.isfinite(row).all() for row in _all_rows(tmp_path / "cache"))


def _all_rows(folder: Path) -> Iterator[Tensor]:
    from safetensors.torch import load_file

    for path in shards(folder):
        yield from (tensor for tensor in load_file(path).values() if tensor.is_floating_point())


def test_too_large_batches_are_halved_and_a_failing_image_is_named(records: list[Record]) -> None:
    encoder = Encoder()

    def small_memory(pixels: Tensor) -> Latents:
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return encoder(pixels)

    cache = make(None)
    build(cache, records, small_memory, batch_size=3)
    assert encoder.batches == [1] * 6
    check_exact(cache, records)

    target = image_loader(IMAGES)(records[2], (64, 64), Crop()).pixels

    def refuses_one(pixels: Tensor) -> Latents:
        if any(torch.equal(image, target) for image in pixels):
            raise ModelError("the VAE gives NaN in float32 too")
        return encoder(pixels)

    with pytest.raises(ModelError, match=r"2\.png: the VAE gives NaN"):
        build(make(None), records, refuses_one, batch_size=3)


def test_half_precision_rows(records: list[Record], tmp_path: Path) -> None:
    cache = LatentCache("vae", IMAGES, folder=tmp_path, dtype=torch.float16)
    build(cache, records)
    assignment = assigned(records)
    row = cache.get(assignment.records[0], assignment.buckets[0], Crop())
    image = image_loader(IMAGES)(assignment.records[0], assignment.buckets[0], Crop())
    assert row.mean.dtype == torch.float16
    torch.testing.assert_close(
        row.mean.float(), Encoder()(image.pixels[None]).mean[0], rtol=5e-4, atol=1e-6
    )


def test_an_image_that_was_not_built_is_an_error(records: list[Record]) -> None:
    cache = make(None)
    build(cache, records[:1])
    with pytest.raises(RunError, match=r"1\.png"):
        cache.get(records[1], (64, 64), Crop())


def test_many_rows_make_few_files_and_publish_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("konomi.data.shards._SHARD_ROWS", 4)
    records = [save_image(tmp_path / f"{i}.png", 64, 64, seed=i) for i in range(10)]
    cache = make(tmp_path / "cache")
    counts = []
    for event in cache.build(assigned(records), image_loader(IMAGES), Encoder()):
        assert isinstance(event, Progress)
        counts.append(len(shards(tmp_path / "cache")))
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert len(shards(tmp_path / "cache")) == 3
    check_exact(make_open(tmp_path / "cache"), records)


def make_open(folder: Path) -> LatentCache:
    cache = make(folder)
    assert cache.open() == []
    return cache

"""Decoding, turning, compositing and cropping, against numpy's own arithmetic."""

import io
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from konomi.data.images import (
    LoadedImage,
    attention_weights,
    crop_to_bucket,
    mask_to_latent_grid,
    read_image,
    read_size,
    unreadable,
    verify,
)
from konomi.data.manifest import Manifest, Record
from konomi.errors import DataError

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
LOSSLESS = {"png": {}, "webp": {"lossless": True, "exact": True}, "tiff": {}}
LOSSY = {
    "jpeg": {"quality": 100, "subsampling": 0},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}


def picture(width: int = 40, height: int = 24) -> np.ndarray:
    """Four corners of different colours: every turn shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 20, 30)
    pixels[: height // 2, width // 2 :] = (20, 240, 40)
    pixels[height // 2 :, : width // 2] = (30, 60, 230)
    pixels[height // 2 :, width // 2 :] = (200, 210, 20)
    return pixels


def record(path: Path) -> Record:
    return Record(
        locator=str(path), name=path.name, role="train", repeats=1, width=1, height=1, content=""
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_every_exif_turn(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif, **LOSSLESS.get(suffix, LOSSY.get(suffix, {})))
    wanted = TURNS[orientation](picture())
    got = read_image(str(path)).pixels
    assert got.shape == wanted.shape
    assert read_size(str(path)) == (wanted.shape[1], wanted.shape[0])
    tolerance = 0 if suffix in LOSSLESS else 24
    # Colour bleeds where the corners meet in lossy files; the middle of each corner tells the turn.
    inner = (slice(3, 9), slice(3, 9)), (slice(-9, -3), slice(3, 9)), (slice(3, 9), slice(-9, -3))
    for window in inner:
        assert np.abs(got[window].astype(int) - wanted[window].astype(int)).max() <= tolerance


def test_png_exif_after_the_pixels_turns_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(buffer, "PNG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"eXIf") - 4
    size = struct.unpack(">I", data[start : start + 4])[0] + 12
    end = data.index(b"IEND") - 4
    path = tmp_path / "late.png"
    path.write_bytes(
        data[:start] + data[start + size : end] + data[start : start + size] + data[end:]
    )
    assert read_size(str(path)) == (24, 40)
    np.testing.assert_array_equal(read_image(str(path)).pixels, TURNS[6](picture()))


def test_an_unknown_turn_is_none(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.fromarray(picture()).save(path, exif=exif)
    assert read_size(str(path)) == read_image(str(path)).size == (40, 24)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    draws = random.Random(5)
    noise = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    path = tmp_path / "damaged"
    for suffix in ("png", "jpeg", "webp", "gif", "tiff", "bmp", "avif"):
        whole = io.BytesIO()
        Image.fromarray(noise).save(whole, suffix)
        for _ in range(60):
            data = bytearray(whole.getvalue())
            for _ in range(draws.choice([1, 3, 10])):
                data[draws.randrange(draws.choice([40, 200, len(data)]))] = draws.randrange(256)
            path.write_bytes(data)
            try:
                size = read_size(str(path))
                assert read_image(str(path)).size == size
            except DataError as error:
                assert str(error).startswith(str(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    Image.fromarray(picture()).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(str(path)).size == (40, 24)


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "really_a_jpeg.png"
    Image.fromarray(picture()).save(path, "JPEG")
    assert read_size(str(path)) == read_image(str(path)).size == (40, 24)


def test_cmyk_is_multiplied_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inks = rng.integers(0, 256, (8, 8, 4), np.uint8)
    path = tmp_path / "ink.tiff"
    Image.fromarray(inks, "CMYK").save(path)
    light = 255 - inks.astype(float)
    wanted = light[..., :3] * light[..., 3:] / 255
    assert np.abs(read_image(str(path)).pixels - wanted).max() <= 1


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    path = tmp_path / "ink.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    red = read_image(str(path)).pixels[8, 8]
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 128, 32768], [65535, 65279, 12345, 40000]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    wanted = np.rint(values / 65535 * 255)
    for channel in range(3):
        np.testing.assert_array_equal(read_image(str(path)).pixels[..., channel], wanted)


def test_floating_point_grey(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    good, bad = tmp_path / "unit.tiff", tmp_path / "wide.tiff"
    Image.fromarray(values).save(good)
    Image.fromarray(values * 900).save(bad)
    np.testing.assert_array_equal(read_image(str(good)).pixels[0, :, 0], [0, 128, 255])
    with pytest.raises(DataError, match=r"wide\.tiff.*floating-point"):
        read_image(str(bad))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P+alpha", "RGB+key"])
def test_transparency_is_laid_on_the_background(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "clear.png"
    opacity = np.zeros((6, 6), np.uint8)
    opacity[:, 2:4], opacity[:, 4:] = 128, 255
    if mode == "RGBA":
        colour = (200, 100, 50)
        pixels = np.dstack([np.full((6, 6, 3), colour, np.uint8), opacity])
        Image.fromarray(pixels).save(path)
    elif mode == "LA":
        colour = (90, 90, 90)
        Image.fromarray(np.dstack([np.full((6, 6), 90, np.uint8), opacity]), "LA").save(path)
    elif mode == "P+alpha":
        colour = (200, 100, 50)
        palette = Image.fromarray((np.arange(6) // 2 * np.ones((6, 1))).astype(np.uint8), "P")
        palette.putpalette([*colour] * 3)
        palette.save(path, transparency=bytes([0, 128, 255]))
    else:
        colour, opacity = (200, 100, 50), np.where(opacity == 128, 255, opacity).astype(np.uint8)
        pixels = np.where(
            opacity[..., None] > 0, np.array(colour, np.uint8), np.array((1, 2, 3), np.uint8)
        )
        Image.fromarray(pixels).save(path, transparency=(1, 2, 3))
    share = opacity[..., None] / 255
    wanted = share * np.array(colour) + (1 - share) * np.array([0x10, 0x80, 0xF0])
    loaded = read_image(str(path), background="#1080f0")
    assert np.abs(loaded.pixels - wanted).max() <= 1
    assert loaded.mask is None
    masked = read_image(str(path), background="#1080f0", alpha="mask")
    assert masked.mask is not None
    np.testing.assert_allclose(masked.mask, opacity / 255, atol=1e-6)


def test_opaque_alpha_is_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "full.png"
    Image.fromarray(np.dstack([picture(), np.full((24, 40), 255, np.uint8)])).save(path)
    loaded = read_image(str(path), alpha="mask")
    assert loaded.mask is None
    np.testing.assert_array_equal(loaded.pixels, picture())


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.array([0, 255], np.uint8), (8, 8))
    path = tmp_path / "mode.tiff"
    Image.fromarray(grey).convert(mode).save(path)
    for channel in range(3):
        assert np.abs(read_image(str(path)).pixels[..., channel].astype(int) - grey).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#00ff00")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (read_image(str(path)).pixels == (255, 0, 0)).all()


def test_mpo(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    Image.fromarray(picture()).save(
        path, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))]
    )
    assert np.abs(read_image(str(path)).pixels[3, 3].astype(int) - (250, 20, 30)).max() < 12


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "gif", "tiff", "bmp", "avif"])
def test_cut_off_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, suffix)
    data = whole.getvalue()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=f"cut.{suffix}"):
        read_image(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(500), "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "not a readable"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(data)
    for read in (read_size, read_image):
        with pytest.raises(DataError, match=f"odd.png: .*{words}"):
            read(str(path))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_declared_sizes_are_refused_before_allocation(tmp_path: Path) -> None:
    side = 60_000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bombs = {
        "png": b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + png_chunk(b"IEND", b""),
        "gif": b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b",\0\0\0\0"
        + struct.pack("<HHB", side, side, 0),
        "bmp": b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
    }
    start = time.monotonic()
    for suffix, data in bombs.items():
        path = tmp_path / f"bomb.{suffix}"
        path.write_bytes(data)
        for read in (read_size, read_image):
            with pytest.raises(DataError, match=f"bomb.{suffix}"):
                read(str(path))
    assert time.monotonic() - start < 5


def test_a_jpeg_of_endless_passes_is_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(picture(640, 480)).save(whole, "JPEG", progressive=True)
    data = whole.getvalue()
    last = data.rindex(b"\xff\xda")
    path = tmp_path / "passes.jpg"
    path.write_bytes(data[:-2] + data[last:-2] * 4000 + data[-2:])
    start = time.monotonic()
    with pytest.raises(DataError, match=r"passes.jpg: .*passes"):
        read_image(str(path))
    assert time.monotonic() - start < 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16"])
def test_the_largest_allowed_image_stays_under_a_gibibyte(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "large.png"
    image = Image.new(mode, (8192, 8192))
    image.save(path, compress_level=1, **({"transparency": 0} if mode == "P" else {}))
    program = (
        "import re, sys\nfrom pathlib import Path\nfrom konomi.data.images import read_image\n"
        "size = read_image(sys.argv[1], alpha='mask').size\n"
        "print(size, re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    # Not ru_maxrss: a child takes over what its parent had at the fork.
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("(8192, 8192)")
    assert int(done.stdout.split()[-1]) < 2**20
    assert time.monotonic() - start < 30


def test_mask_image(tmp_path: Path) -> None:
    image, mask, wrong = (
        tmp_path / "a.png",
        tmp_path / "a-masklabel.png",
        tmp_path / "b-masklabel.png",
    )
    Image.fromarray(picture()).save(image)
    weights = np.zeros((24, 40), np.uint8)
    weights[4:20, 4:20] = 255
    Image.fromarray(weights).save(mask)
    Image.new("L", (24, 40)).save(wrong)
    loaded = read_image(str(image), mask=str(mask))
    assert loaded.mask is not None
    np.testing.assert_array_equal(loaded.mask, weights / 255)
    Image.fromarray(weights).resize((80, 48)).save(mask)
    assert read_image(str(image), mask=str(mask)).mask.shape == (24, 40)
    with pytest.raises(DataError, match=r"b-masklabel.png: a mask of 24x40"):
        read_image(str(image), mask=str(wrong))


def test_attention_mask(tmp_path: Path) -> None:
    """DreamArtist's scale: black 0, middle grey 1, white 5; it multiplies with another mask."""
    grey = Image.fromarray(np.array([[0, 64, 127, 128, 191, 255]], np.uint8))
    expected = [0.0, 64 / 127, 1.0, 1.0, 1 + 63 * 4 / 127, 5.0]
    np.testing.assert_allclose(attention_weights(grey)[0], expected, rtol=1e-6)
    image, mask, attention = (tmp_path / name for name in ("a.png", "a-masklabel.png", "a_att.png"))
    Image.fromarray(picture()).save(image)
    Image.new("L", (40, 24), 51).save(mask)
    levels = np.full((24, 40), 255, np.uint8)
    levels[:, 20:] = 0
    Image.fromarray(levels).save(attention)
    loaded = read_image(str(image), attention=str(attention)).mask
    assert loaded is not None
    np.testing.assert_array_equal(loaded, np.where(levels == 255, 5, 0))
    both = read_image(str(image), mask=str(mask), attention=str(attention)).mask
    assert both is not None
    np.testing.assert_allclose(both, loaded * 0.2, rtol=1e-6)
    clear = np.zeros((24, 40, 4), np.uint8)
    Image.fromarray(clear, "RGBA").save(attention)
    nothing_said = read_image(str(image), attention=str(attention)).mask
    np.testing.assert_array_equal(nothing_said, np.ones((24, 40)))


@given(
    st.integers(8, 90),
    st.integers(8, 90),
    st.integers(1, 10),
    st.integers(1, 10),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_crop_is_the_scaled_image_cut(
    width: int, height: int, w8: int, h8: int, x: float, y: float
) -> None:
    bucket = (8 * w8, 8 * h8)
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (3, 3, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    loaded = LoadedImage(pixels, np.full((height, width), 0.25, np.float32))
    crop = crop_to_bucket(loaded, bucket, crop_position=(x, y))
    assert crop.pixels.shape == (bucket[1], bucket[0], 3) and crop.pixels.dtype == np.uint8
    assert crop.pixels.flags.writeable
    np.testing.assert_allclose(crop.mask, 0.25, atol=1e-6)
    original_height, original_width, top, left, target_height, target_width = crop.sizes
    assert (original_height, original_width) == (height, width)
    assert (target_height, target_width) == (bucket[1], bucket[0])
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))
    assert scaled[0] == bucket[0] or scaled[1] == bucket[1]
    assert 0 <= left <= scaled[0] - bucket[0] and 0 <= top <= scaled[1] - bucket[1]
    filter_ = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    whole = np.asarray(Image.fromarray(pixels).resize(scaled, filter_))
    cut = whole[top : top + bucket[1], left : left + bucket[0]]
    assert np.abs(crop.pixels.astype(int) - cut.astype(int)).max() <= 2

    mirrored = crop_to_bucket(loaded, bucket, crop_position=(x, y), flip=True)
    np.testing.assert_array_equal(mirrored.pixels, crop.pixels[:, ::-1])
    assert mirrored.sizes[3] == scaled[0] - bucket[0] - left


def test_an_image_that_fits_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    crop = crop_to_bucket(LoadedImage(pixels), (64, 64), crop_position=(1.0, 0.5))
    np.testing.assert_array_equal(crop.pixels, pixels[:, 32:])
    assert crop.mask is None and crop.sizes == (64, 96, 0, 32, 64, 64)


def test_mask_to_latent_grid() -> None:
    mask = np.random.default_rng(0).random((32, 48)).astype(np.float32)
    grid = mask_to_latent_grid(mask)
    assert grid.shape == (4, 6) and grid.dtype == np.float32
    for row in range(4):
        for column in range(6):
            cell = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert grid[row, column] == pytest.approx(cell.astype(np.float64).mean(), abs=1e-7)


def test_all_bad_files_are_named_together(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        Image.fromarray(picture()).save(tmp_path / name)
    for name in ("1.png", "4.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) - 40])
    manifest = Manifest(tuple(record(tmp_path / name) for name in names))
    assert [bad.name for bad in unreadable(manifest.records, workers=2)] == ["1.png", "4.png"]
    with pytest.raises(DataError, match=r"2 images .*1\.png.*4\.png"):
        verify(manifest)

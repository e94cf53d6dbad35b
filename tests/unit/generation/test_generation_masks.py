"""Masks and pictures to start from, as a person sees them."""

import numpy as np
import pytest
from PIL import Image

from konomi import tasks
from konomi.data.images import read_mask
from konomi.errors import DataError, RecipeError
from konomi.generation.picture_input import fitted_size, mask_to_pixels

SIZE = (32, 24)


def painted() -> np.ndarray:
    """Where the mask is white."""
    area = np.zeros(SIZE[::-1], bool)
    area[4:16, 8:20] = True
    return area


def layered(paint: tuple[int, int, int], ground: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.empty((*SIZE[::-1], 4), np.uint8)
    pixels[:] = ground
    pixels[painted()] = (*paint, 255)
    return Image.fromarray(pixels)


def palette(transparent: bool) -> Image.Image:
    image = Image.fromarray(painted().astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255] if not transparent else [255, 255, 255] * 2)
    return image


GREY = Image.fromarray(painted().astype(np.uint8) * 255)
MASKS = {
    "grey": (GREY, {}),
    "rgb": (GREY.convert("RGB"), {}),
    "1 bit": (GREY.convert("1"), {}),
    "16 bit": (Image.fromarray(painted().astype(np.uint16) * 65535), {}),
    "white on transparent white": (layered((255, 255, 255), (255, 255, 255, 0)), {}),
    "white on transparent black": (layered((255, 255, 255), (0, 0, 0, 0)), {}),
    "white on opaque black": (layered((255, 255, 255), (0, 0, 0, 255)), {}),
    "black on transparent": (layered((0, 0, 0), (0, 0, 0, 0)), {}),
    "grey and alpha": (layered((255, 255, 255), (255, 255, 255, 0)).convert("LA"), {}),
    "palette": (palette(False), {}),
    "palette, transparent": (palette(True), {"transparency": b"\x00\xff"}),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_is_read_as_it_looks(tmp_path, name):
    mask, options = MASKS[name]
    path = tmp_path / "mask.png"
    mask.save(path, **options)
    seen = np.asarray(read_mask(str(path), SIZE, "init.png"))
    np.testing.assert_array_equal(seen, painted() * 255)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(mask_to_pixels(opened, *SIZE)[0, 0].numpy(), painted())


def test_a_mask_is_turned_as_its_exif_says_and_must_have_the_pictures_shape(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    GREY.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    seen = np.asarray(read_mask(str(tmp_path / "turned.png"), SIZE, "init.png"))
    np.testing.assert_array_equal(seen, painted() * 255)
    with pytest.raises(DataError, match=r"a mask of 32x24 for init\.png, which is 32x32"):
        GREY.save(tmp_path / "mask.png")
        read_mask(str(tmp_path / "mask.png"), (32, 32), "init.png")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1200, 1200), (512, 512)),
        ((4000, 3000), (592, 440)),
        ((300, 6000), (112, 2288)),
        ((500, 400), (496, 400)),
        ((5, 5), (8, 8)),
    ],
)
def test_a_large_picture_is_fitted_to_the_area_of_the_base(size, expected):
    fitted = fitted_size(size, 512, 8)
    assert fitted == expected
    assert fitted[0] * fitted[1] <= 1.02 * 512**2


def draw(tmp_path, **options):
    told = []
    (path,) = tasks.generate(
        ["a cat"],
        base="tiny",
        steps=2,
        seed=1,
        guidance=1,
        output=tmp_path / "out",
        tell=told.append,
        **options,
    )
    with Image.open(path) as image:
        return np.asarray(image).astype(int), told


def test_generate_changes_what_is_painted_and_nothing_else(tmp_path):
    ground = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(ground).save(tmp_path / "init.png")
    area = np.zeros((128, 128), bool)
    area[32:96, 40:80] = True
    pixels = np.full((128, 128, 4), 255, np.uint8)
    pixels[..., 3] = area * 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    drawn, told = draw(
        tmp_path, init=tmp_path / "init.png", mask=tmp_path / "mask.png", strength=1.0
    )
    changed = (drawn != ground).any(-1)
    assert not changed[~area].any()
    assert changed[area].mean() > 0.9
    assert told == []


def test_a_large_picture_is_drawn_at_the_bases_size_and_that_is_said(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((600, 300)).save(tmp_path / "photo.jpg", exif=exif)
    drawn, told = draw(tmp_path, init=tmp_path / "photo.jpg", strength=0.5)
    assert drawn.shape == (184, 88, 3)
    assert told == [
        "The picture to start from is 300x600; it is drawn at 88x184. --size decides otherwise."
    ]
    drawn, told = draw(tmp_path, init=tmp_path / "photo.jpg", strength=0.5, size="64x64")
    assert drawn.shape == (64, 64, 3)
    assert told == [
        "The picture to start from is 300x600 and is stretched to 64x64, a size of another shape."
    ]


def test_what_cannot_be_meant_is_refused(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "init.png")
    with pytest.raises(RecipeError, match="nothing in this mask is white"):
        draw(tmp_path, init=tmp_path / "init.png", mask=tmp_path / "init.png")
    with pytest.raises(RecipeError, match="--mask is given without --init"):
        draw(tmp_path, mask=tmp_path / "init.png")
    assert draw(tmp_path, strength=0.5, size="64")[1] == [
        "--strength has no effect without --init."
    ]

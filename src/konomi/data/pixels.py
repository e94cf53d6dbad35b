"""Bytes of an image file -> RGB pixels. The content decides, not the file's extension.

Only plain raster formats are tried, so that no PostScript, video or document decoder ever sees a
stranger's file. HEIC pictures (phones) are read where the package pillow-heif is installed, the
extra `heif`.
"""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

FORMATS = tuple(
    str(reader.format)
    for reader in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        AvifImagePlugin.AvifImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
        QoiImagePlugin.QoiImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
    )
)
"""MPO (what some phones and cameras write) is read as the JPEG it starts with."""
_TGA = str(TgaImagePlugin.TgaImageFile.format)
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
"""At the end of a TGA of version 2; older ones have nothing that tells them from other bytes."""
MAX_PIXELS = 2**26
"""8192 x 8192. Decoding, turning and compositing that many stays under 1 GiB."""
MAX_JPEG_SCANS = 100
"""Cameras and encoders write about 10; each scan costs a pass over the whole image, which bombs
use."""
IMAGE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's readers raise on damaged files."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2")
_PNG_ORIENTATION_CHUNKS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")


@cache
def heif_format() -> str:
    """The name of Pillow's reader for HEIC, "" where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return ""
    # Thumbnails and depth images are other pictures in the same file; only the main one is wanted.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False)
    return "HEIF"


def readers() -> str:
    """What images can be read with: an image refused by other readers may be readable now."""
    from PIL import __version__

    return f"pillow {__version__}{' heif' if heif_format() else ''}"


def is_drawn_here(data: bytes) -> bool:
    """Whether the text of a PNG says that konomi drew it."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    texts = data[: data.find(b"IDAT")]
    return b"Version: konomi " in texts or b"Software\0konomi" in texts


class BadImageError(Exception):
    """Why these bytes are no usable image; the caller knows the file's name and makes the
    message.
    """


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) as it will look, after EXIF turning. Decodes no pixel (except for PNGs with
    a turn in them).

    Raises:
        BadImageError: not an image of a known format, or too large.
    """
    image = _open(data)
    width, height = image.size
    if _orientation(image, data) in _SIDEWAYS:
        return height, width
    return width, height


def decode(data: bytes, *, background: str = "#ffffff") -> tuple[Image.Image, Image.Image | None]:
    """The first frame, turned upright: RGB laid on `background`, and its opacity ("L") where it
    has any transparency.

    Raises:
        BadImageError: damaged, cut off, of an unknown kind, or too large.
    """
    image = _open(data)
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise BadImageError(
            "a JPEG with more passes than any camera writes; save it again in an image editor"
        )
    try:
        if image.format == "PNG":
            image.load()  # Asking for EXIF would load it, and hide that it is damaged.
        turn = _TURNS.get(_orientation(image, data))
        image.load()
        rgb, opacity = _to_rgb(image, background)
    except IMAGE_ERRORS as error:
        raise BadImageError(f"damaged or cut off ({_reason(error)})") from error
    if turn is not None:
        rgb = rgb.transpose(turn)
        opacity = opacity and opacity.transpose(turn)
    return rgb, opacity


def decode_mask(data: bytes) -> Image.Image:
    """A mask image as greyscale "L": white trains, black does not; see `mask_of`."""
    return _grey_mask(*decode(data, background="#000000"))


def decode_attention(data: bytes) -> Image.Image:
    """An attention mask as greyscale "L": middle grey is ordinary attention, and transparent
    counts as that.
    """
    return decode(data, background="#7f7f7f")[0].convert("L")


def mask_of(image: Image.Image) -> Image.Image:
    """A mask of any mode as greyscale "L", as a person sees it: white paint counts, transparent is
    not painted.

    Raises:
        BadImageError: pixels that are no picture.
    """
    return _grey_mask(*_to_rgb(image, "#000000"))


def _grey_mask(rgb: Image.Image, opacity: Image.Image | None) -> Image.Image:
    grey = rgb.convert("L")
    # Painted in black on nothing: then where there is paint is all the mask says.
    return opacity if opacity is not None and grey.getextrema() == (0, 0) else grey


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats_for(data))
    except IMAGE_ERRORS as error:
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            raise BadImageError(_too_large("of enormous size")) from error
        raise BadImageError(_what_it_is(data)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(_too_large(f"{width}x{height}"))
    if width < 1 or height < 1:
        raise BadImageError("it has no pixels")
    return image


def _formats_for(data: bytes) -> tuple[str, ...]:
    if data.endswith(_TGA_FOOTER):
        return (*FORMATS, _TGA)
    # AVIF is in the same container, and Pillow reads it by itself.
    if data[4:8] == b"ftyp" and not data[8:12].startswith(b"avi") and heif_format():
        return (heif_format(),)
    return FORMATS


def _too_large(what: str) -> str:
    return f"{what}: more than {MAX_PIXELS} pixels; scale it down"


def _what_it_is(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the image itself; run `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image; download it again"
    if start.startswith((b"<svg", b"<?xml")):
        return "a vector drawing (SVG); export it as PNG"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        if heif_format():
            return "a damaged HEIC picture; copy it again, or convert it to PNG or JPEG"
        return (
            "a HEIC picture, as phones make them; pip install 'konomi[heif]' has konomi read "
            "it, or convert it"
        )
    if data[4:8] == b"ftyp":
        return "a video or another media file; convert it to PNG or JPEG"
    if data[:2] == b"\xff\x0a" or data[4:12] == b"JXL \r\n\x87\n":
        return "a JPEG XL picture, which Pillow does not read; convert it to PNG"
    if start.startswith((b"%!ps", b"%pdf", b"\xc5\xd0\xd3\xc6")):
        return "PostScript or PDF, a page and not a picture; export it as PNG"
    if data[:4] == b"v/1\x01" or start.startswith(b"#?radiance"):
        return "a picture of high dynamic range; save it as 8- or 16-bit PNG"
    if data[:4] == b"8BPS":
        return "a Photoshop file; export it as PNG"
    if not any(data[:64]):
        return "only zero bytes; copy the file again"
    return (
        "not a readable image (PNG, JPEG, WebP, AVIF, BMP, GIF, TIFF, JPEG 2000, QOI, PPM); "
        "export it as PNG"
    )


def _reason(error: BaseException) -> str:
    return str(error).replace("\n", " ") or type(error).__name__


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF by itself while loading, and reports its size as turned.
    # Asking a PNG for EXIF decodes all of it, since the chunk may come last; so look whether there
    # is one.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_ORIENTATION_CHUNKS):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except IMAGE_ERRORS:
        return 1  # Damaged EXIF in a good picture: every viewer shows it as it is.
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, background: str) -> tuple[Image.Image, Image.Image | None]:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image, background)
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    rgba = image.convert("RGBA")
    return _lay_on(rgba, rgba.getchannel("A"), background)


def _lay_on(
    picture: Image.Image, opacity: Image.Image, background: str
) -> tuple[Image.Image, Image.Image | None]:
    if opacity.getextrema() == (255, 255):
        return picture.convert("RGB"), None
    flat = Image.new("RGB", picture.size, background)
    flat.paste(picture, mask=opacity)
    return flat, opacity


def _deep_grey_to_rgb(
    image: Image.Image, background: str
) -> tuple[Image.Image, Image.Image | None]:
    """16-bit (also kept in 32) or floating-point grey: Pillow's own conversion clips instead of
    scaling.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0.0 and high <= 1.0):
            raise BadImageError("floating-point pixels outside 0 to 1; save it as 8-bit PNG")
        grey = np.rint(values * np.float32(255))
    elif low < 0 or high > 65535:
        raise BadImageError("32-bit integer pixels; save it as 8- or 16-bit PNG")
    else:
        grey = (values.astype(np.uint32) * 255 + 32767) // 65535
    rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        return _lay_on(rgb, Image.fromarray(((values != clear) * 255).astype(np.uint8)), background)
    return rgb, None

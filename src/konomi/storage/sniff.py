"""What a file is by its content. The extension is never asked."""

import os
import stat
import struct
import zipfile
from enum import Enum
from pathlib import Path

from konomi.errors import FileFormatError

TORCH_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The pickled magic number 0x1950a86a20f9469cfc6c that torch.save wrote first until 2020."""


class FileKind(Enum):
    """The value is a sentence fragment for people: "this is ..."."""

    SAFETENSORS = "a safetensors file"
    TORCH_ZIP = "a PyTorch file (zip)"
    TORCH_LEGACY = "a PyTorch file (legacy pickle)"
    PICKLE = "a bare Python pickle, which can run programs and is never opened"
    ZIP = "a zip archive"
    PNG = "a PNG image"
    JPEG = "a JPEG image"
    WEBP = "a WebP image"
    GIF = "a GIF image"
    BMP = "a BMP image"
    TIFF = "a TIFF image"
    AVIF = "an AVIF image"
    HTML = "a web page, not a model: the download link led to a page. Download the file itself"
    LFS_POINTER = "a git-LFS pointer, not the file itself. Run `git lfs pull` or download the file"
    GZIP = "a gzip archive. Unpack it first"
    TAR = "a tar archive. Unpack it first"
    SEVEN_ZIP = "a 7z archive. Unpack it first"
    RAR = "a RAR archive. Unpack it first"
    GGUF = "a GGUF file (quantised model), which konomi does not read"
    NUMPY = "a NumPy array, which konomi does not read"
    JSON = "a JSON text"
    EMPTY = "empty (0 bytes). Download it again"
    TRUNCATED = "cut short: the download or copy did not finish. Download it again"
    FOLDER = "a folder"
    SPECIAL = "a device, pipe or socket, not a file"
    MISSING = "missing"
    UNKNOWN = "of a kind konomi does not know"


IMAGES = (
    FileKind.PNG,
    FileKind.JPEG,
    FileKind.WEBP,
    FileKind.GIF,
    FileKind.BMP,
    FileKind.TIFF,
    FileKind.AVIF,
)

_MAX_SAFETENSORS_HEADER = 100_000_000
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", FileKind.PNG),
    (b"\xff\xd8\xff", FileKind.JPEG),
    (b"GIF87a", FileKind.GIF),
    (b"GIF89a", FileKind.GIF),
    (b"II*\x00", FileKind.TIFF),
    (b"MM\x00*", FileKind.TIFF),
    (b"version https://git-lfs", FileKind.LFS_POINTER),
    (b"\x1f\x8b", FileKind.GZIP),
    (b"7z\xbc\xaf\x27\x1c", FileKind.SEVEN_ZIP),
    (b"Rar!", FileKind.RAR),
    (b"GGUF", FileKind.GGUF),
    (b"\x93NUMPY", FileKind.NUMPY),
)


def sniff(path: Path | str) -> FileKind:
    """What lies at a path. Opens regular files only, so a pipe or device cannot block; never
    raises for content.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: no file has a zero byte in its name.
        return FileKind.MISSING
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be opened ({error.strerror}).") from error
    if stat.S_ISDIR(mode):
        return FileKind.FOLDER
    if not stat.S_ISREG(mode):
        return FileKind.SPECIAL
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be read ({error.strerror}). Check its permissions."
        ) from error
    return _classify(path, start, size)


def refuse(path: Path | str, kind: FileKind, wanted: str) -> FileFormatError:
    """The error for a file that is something else than what is wanted."""
    if kind is FileKind.MISSING:
        return FileFormatError(f"{path}: no such file or folder.")
    return FileFormatError(f"{path}: {wanted} is wanted; this is {kind.value.rstrip('.')}.")


def _classify(path: Path, start: bytes, size: int) -> FileKind:
    if size == 0:
        return FileKind.EMPTY
    # First of all, because the length that opens a safetensors file may look like another format's
    # magic number.
    if (
        start[8:9] == b"{"
        and (length := struct.unpack("<Q", start[:8])[0]) <= _MAX_SAFETENSORS_HEADER
    ):
        # Whether the data is complete is said, with figures, by `tensor_file.read_header`.
        return FileKind.SAFETENSORS if 2 <= length <= size - 8 else FileKind.TRUNCATED
    for magic, kind in _STARTS:
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return FileKind.WEBP
    if start[:2] == b"BM" and len(start) >= 14 and struct.unpack("<I", start[2:6])[0] == size:
        return FileKind.BMP
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return FileKind.AVIF
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _classify_zip(path)
    if start.startswith(TORCH_LEGACY_START):
        return FileKind.TORCH_LEGACY
    if start[257:262] == b"ustar":
        return FileKind.TAR
    if start[0:1] == b"\x80" and start[1:2] in (
        b"\x00",
        b"\x01",
        b"\x02",
        b"\x03",
        b"\x04",
        b"\x05",
    ):
        return FileKind.PICKLE
    return _classify_text(start)


def _classify_text(start: bytes) -> FileKind:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return FileKind.HTML
    if text.startswith((b"{", b"[")):
        return FileKind.JSON
    if not start.strip(b"\0"):
        return FileKind.TRUNCATED
    return FileKind.UNKNOWN


def _classify_zip(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return FileKind.TRUNCATED
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return FileKind.TORCH_ZIP
    return FileKind.ZIP

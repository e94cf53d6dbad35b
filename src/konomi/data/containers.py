"""Where bytes lie: plain files, members of a zip, members of a tar. Nothing is ever unpacked to
disk.

A *locator* is a file path, `CONTAINER.zip::MEMBER`, or `SHARD.tar::OFFSET+SIZE::MEMBER`: the last
needs no index of the shard, so a random read costs one seek however many shards there are.
"""

import contextlib
import io
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from konomi.data.manifest import Excluded
from konomi.errors import DataError, printable

MAX_FILE_BYTES = 256 * 2**20
"""Larger single files are refused: with it and the pixel limit, one image stays under 1 GiB of
memory."""
MAX_ZIP_RATIO = 100
"""A zip that promises to grow more than this (and past 1 GiB) is a bomb; images hardly compress at
all."""
MEMBER_ERRORS = (
    OSError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Python's readers of zips raise on damaged ones: names that are no text, lying offsets,
broken streams."""
JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db"})

_DIGITS = re.compile(rb"([0-9]+)")
_TAR_PART = re.compile(r"(\d+)\+(\d+)::(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source, known by name only: nothing of it has been read."""

    name: str
    """Path relative to the source, "/" between parts."""
    locator: str
    size: int
    """Bytes."""
    mtime_ns: int
    """Of the file, or of the container it lies in; so are the next two."""
    ctime_ns: int = 0
    """Of the last change of anything about it: a tool may set `mtime_ns` back, but not this."""
    inode: int = 0


@dataclass(slots=True)
class Listing:
    """The files of one source in natural order, and what may not be read."""

    entries: list[Entry]
    excluded: list[Excluded]


def natural_key(name: str) -> tuple[list[list[bytes | tuple[int, bytes]]], bytes]:
    """Sort key: folder by folder, bytes as they are, digit runs as numbers; the same under every
    locale.
    """
    raw = name.encode("utf-8", "surrogatepass")
    *folders, base = raw.split(b"/")
    # The suffix apart: `a.png` comes before `a1.png`.
    stem, dot, suffix = base.rpartition(b".")
    return [_natural_pieces(part) for part in (*folders, stem if dot else base, suffix)], raw


def _natural_pieces(part: bytes) -> list[bytes | tuple[int, bytes]]:
    """Text and number by turns; a number as its length and digits, since Python refuses to read
    very long ones.
    """
    texts = _DIGITS.split(part)
    pieces: list[bytes | tuple[int, bytes]] = [*texts]
    for place in range(1, len(texts), 2):
        digits = texts[place].lstrip(b"0")
        pieces[place] = (len(digits), digits)
    return pieces


def split_suffix(name: str) -> tuple[str, str]:
    """("photo", ".jpg") of "photo.JPG": the suffix in lower case, "" without one."""
    stem, dot, suffix = name.rpartition(".")
    has_suffix = dot and stem and not stem.endswith("/") and "/" not in suffix
    return (stem, f".{suffix.lower()}") if has_suffix else (name, "")


def is_junk(name: str) -> bool:
    """Hidden files, and what operating systems leave behind."""
    if "/" in name:
        return any(is_junk(part) for part in name.split("/"))
    return name.startswith(".") or name.lower() in JUNK


def list_folder(root: Path, *, recursive: bool = True) -> Listing:
    """All files under a folder. Links that lead outside, FIFOs and devices are listed as excluded
    and never opened.
    """
    listing = Listing([], [])
    real_root = os.path.realpath(root)
    pending = [(os.fspath(root), "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            with os.scandir(folder) as found:
                for item in found:
                    name = prefix + item.name
                    if is_junk(item.name):
                        continue
                    if item.is_dir(follow_symlinks=False):
                        if recursive:
                            pending.append((item.path, name + "/"))
                    else:
                        _add_file(listing, item, name, real_root)
        except OSError as error:
            reason = f"the folder cannot be read: {error.strerror}"
            listing.excluded.append(
                Excluded(name=printable(prefix) or printable(folder), reason=reason)
            )
    listing.entries.sort(key=lambda entry: natural_key(entry.name))
    listing.excluded.sort(key=lambda excluded: natural_key(excluded.name))
    return listing


def list_image(path: Path, beside: Collection[str]) -> Listing:
    """One image of a folder, with the files of its name whose suffixes are among `beside`."""
    listing = list_folder(path.parent, recursive=False)
    stem = split_suffix(path.name)[0]

    def belongs(name: str) -> bool:
        other, suffix = split_suffix(name)
        return name == path.name or (other == stem and suffix in beside)

    return Listing(
        [entry for entry in listing.entries if belongs(entry.name)],
        [one for one in listing.excluded if one.name == path.name],
    )


def _add_file(listing: Listing, item: os.DirEntry[str], name: str, real_root: str) -> None:
    path = item.path
    status = item.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        try:
            path = os.path.realpath(path, strict=True)
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            listing.excluded.append(
                Excluded(name=printable(name), reason=f"a broken link: {error.strerror}")
            )
            return
        if os.path.commonpath([real_root, path]) != real_root:
            reason = "a link that leads out of the source folder; copy the file in"
            listing.excluded.append(Excluded(name=printable(name), reason=reason))
            return
        if stat.S_ISDIR(status.st_mode):
            listing.excluded.append(
                Excluded(name=printable(name), reason="a link to a folder; links are not followed")
            )
            return
    if not stat.S_ISREG(status.st_mode):
        listing.excluded.append(
            Excluded(name=printable(name), reason="not a regular file (a pipe, socket or device)")
        )
        return
    listing.entries.append(
        Entry(name, path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    )


def list_zip(path: Path) -> Listing:
    """All members of a zip, by its directory.

    Raises:
        DataError: not a zip, damaged, or a bomb.
    """
    listing = Listing([], [])
    status = path.stat()
    packed = unpacked = 0
    for info in _opened_zip(os.fspath(path)).infolist():
        if info.filename.endswith("/"):  # `is_dir` of Python 3.11 fails at an empty name.
            continue
        name = _zip_name(info)
        packed, unpacked = packed + info.compress_size, unpacked + info.file_size
        reason = _zip_refusal(info, name)
        if is_junk(name) and not name.startswith(".."):
            continue
        if reason:
            listing.excluded.append(Excluded(name=printable(name), reason=reason))
        else:
            member = f"{path}::{info.filename}"
            times = status.st_mtime_ns, status.st_ctime_ns
            listing.entries.append(Entry(name, member, info.file_size, *times, status.st_ino))
    if unpacked > 2**30 and unpacked > MAX_ZIP_RATIO * max(packed, 1):
        raise DataError(
            f"{printable(str(path))}: {packed} bytes that unpack to {unpacked}: a zip bomb. Remove "
            "it."
        )
    listing.entries.sort(key=lambda entry: natural_key(entry.name))
    return listing


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Zips without the UTF-8 flag hold names in the maker's own encoding; Japanese Windows writes
    cp932.
    """
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        raw = name.encode("cp437")
        for encoding in ("utf-8", "cp932"):
            with contextlib.suppress(UnicodeDecodeError):
                name = raw.decode(encoding)
                break
    return name.replace("\\", "/")


def _zip_refusal(info: zipfile.ZipInfo, name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
        return "its name points outside the zip"
    if info.file_size > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES >> 20} MiB; save it smaller"
    if info.flag_bits & 0x1:
        return "it is encrypted; unpack the zip with its password first"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link; links are not followed"
    return ""


@contextlib.contextmanager
def open_locator(locator: str) -> Iterator[IO[bytes]]:
    """The bytes behind a locator, as a stream that can be read once.

    Raises:
        DataError: missing, unreadable, damaged, or not a regular file.
    """
    container, member = split_locator(locator)
    if not member:
        with _open_regular(container) as stream:
            yield stream
        return
    if found := _TAR_PART.fullmatch(member):
        with _open_regular(container) as stream:
            stream.seek(int(found[1]))
            yield io.BytesIO(_read_limited(stream, int(found[2]), locator))
        return
    try:
        stream = _opened_zip(container).open(member)
    except MEMBER_ERRORS as error:
        raise DataError(
            f"{printable(locator)}: cannot be read from the zip ({error}). Make the zip again."
        ) from error
    with stream:
        yield stream


def read_bytes(locator: str, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """All bytes behind a locator.

    Raises:
        DataError: missing, unreadable, damaged, or larger than `limit` bytes.
    """
    with open_locator(locator) as stream:
        try:
            data = stream.read(limit + 1)
        except MEMBER_ERRORS as error:
            raise DataError(
                f"{printable(locator)}: damaged, it cannot be read to the end ({error})"
            ) from error
    if len(data) > limit:
        raise DataError(f"{printable(locator)}: larger than {limit >> 20} MiB. Save it smaller.")
    return data


def split_locator(locator: str) -> tuple[str, str]:
    """(container, member), or (path, "") for a plain file. A file's own name may hold "::" too."""
    start = locator.find("::")
    while start >= 0:
        if Path(locator[:start]).is_file():
            return locator[:start], locator[start + 2 :]
        start = locator.find("::", start + 1)
    return locator, ""


def _read_limited(stream: IO[bytes], size: int, locator: str) -> bytes:
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{printable(locator)}: larger than {MAX_FILE_BYTES >> 20} MiB. Save it smaller."
        )
    data = stream.read(size)
    if len(data) < size:
        raise DataError(
            f"{printable(locator)}: the tar file ends in the middle of it. Copy the shard again."
        )
    return data


def _open_regular(path: str) -> IO[bytes]:
    # The stat comes first so that a pipe is never opened; O_NONBLOCK and the second look hold if
    # it is swapped between.
    try:
        if stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
            handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return os.fdopen(handle, "rb")
            os.close(handle)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    raise DataError(f"{printable(path)}: not a regular file")


def _opened_zip(path: str) -> zipfile.ZipFile:
    try:
        status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{printable(path)}: not a regular file")
        # The process id keeps forked workers from sharing one file position.
        return _cached_zip(path, status.st_size, status.st_mtime_ns, os.getpid())
    except MEMBER_ERRORS as error:
        raise DataError(
            f"{printable(path)}: not a readable zip ({error}). Download or make it again."
        ) from error


@lru_cache(maxsize=8)
def _cached_zip(path: str, _size: int, _mtime_ns: int, _process: int) -> zipfile.ZipFile:
    # By name, so that the archive closes its file when it leaves the cache.
    return zipfile.ZipFile(path)

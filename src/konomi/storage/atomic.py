"""Files and folders that are either complete or absent, whatever ends the process.

The order is always: write beside the target, fsync the file, rename, fsync the folder. A reader
therefore sees the old content or the new, never a mixture, and what was published survives a power
cut.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from konomi.errors import RunError
from konomi.storage import process

_PARTIAL = re.compile(r"^\.partial-([0-9a-f]{8})-(\d+)-(\d*)-[0-9a-f]{8}-")
_FOREIGN_AGE = 24 * 3600.0
"""Seconds after which a leftover of another host on a shared disk is taken for dead."""

_ADVICE = {
    errno.ENOSPC: "the disk is full. Free some space or choose another output folder",
    errno.EDQUOT: "your disk quota is used up. Free some space or choose another output folder",
    errno.EIO: "the disk reports a read or write error. Check the disk and choose another output "
    "folder",
    errno.EROFS: "the disk is read-only. Choose another output folder",
    errno.EACCES: "permission denied. Change the permissions or choose another folder",
    errno.EPERM: "the operation is not permitted. Change the permissions or choose another folder",
    errno.ENOENT: "the folder is gone. Create it again or choose another one",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another folder",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.EEXIST: "something else of that name is in the way. Choose another name",
    errno.EISDIR: "is a folder, and a file is to be written there. Choose another name",
    errno.ELOOP: "the links lead in a circle. Choose another folder",
    errno.ENOTEMPTY: "the folder is not empty. Choose another name",
    errno.EFBIG: "the file is too large for this disk. Choose another output folder",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a RunError that names the path and what to do.
    Others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        raise RunError(f"{path}: {_ADVICE[error.errno]}.") from error


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that `sweep_temporaries` knows. Nothing is created; the suffix
    stays the same.
    """
    suffix = path.suffix[-16:]
    stem = path.name[: len(path.name) - len(suffix)] if suffix else path.name
    # Names are limited to 255 bytes, and the prefix takes about 50 of them.
    stem = stem.encode("utf-8", "surrogateescape")[:120].decode("utf-8", "ignore")
    pid = os.getpid()
    return path.with_name(
        f".partial-{_host()}-{pid}-{process.start_time(pid)}-{secrets.token_hex(4)}-{stem}{suffix}"
    )


@contextlib.contextmanager
def write_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; publish it as `path` when the block ends without
    an error.

    The parent folder is created. On any failure the temporary file is removed and what stood at
    `path` is untouched. Raises RunError for a full, failing, read-only or forbidden disk.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            _remove(temporary)
            raise


def write_text(path: Path | str, text: str) -> None:
    """Atomic UTF-8 text with line feeds as given."""
    with write_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@contextlib.contextmanager
def write_folder(final: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new temporary folder beside `final`; publish it whole when the block ends without an
    error.
    """
    final = Path(final)
    with explained(final):
        temporary = temporary_beside(final)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            publish_folder(temporary, final, replace=replace)
        except BaseException:
            _remove(temporary)
            raise


def publish_folder(temporary: Path, final: Path, *, replace: bool = False) -> None:
    """Make every file and folder under `temporary` durable, then rename it to `final`, in the same
    file system.

    With `replace`, an existing `final` is moved aside first and removed afterwards; without, it is
    a RunError.
    """
    with explained(final):
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                sync_file(Path(folder, name))
            sync_folder(Path(folder))
        aside = None
        if final.exists():
            if not replace:
                raise RunError(f"{final}: exists already. Remove it or choose another name.")
            aside = temporary_beside(final)
            final.rename(aside)
        temporary.rename(final)
        sync_folder(final.parent)
        if aside is not None:
            _remove(aside)


def sweep_temporaries(folder: Path | str) -> list[Path]:
    """Remove what killed processes left directly in `folder`. Returns the removed paths.

    Temporaries of processes that still run are kept, and those of other hosts until they are a day
    old.
    """
    removed = []
    for path in sorted(Path(folder).glob(".partial-*")):
        match = _PARTIAL.match(path.name)
        if match is None:
            continue
        host, pid, started = match.groups()
        if host == _host():
            leftover = not process.is_alive(int(pid), started)
        else:
            leftover = _age(path) > _FOREIGN_AGE
        if leftover:
            with explained(path):
                _remove(path)
            removed.append(path)
    return removed


def check_free_space(folder: Path | str, bytes_needed: int) -> None:
    """Raise RunError with both figures if the disk of `folder`, or of its nearest existing parent,
    is too full.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    with explained(existing):
        free = shutil.disk_usage(existing).free
    if free < bytes_needed:
        raise RunError(
            f"{folder}: {_size(bytes_needed)} are needed and {_size(free)} are free. "
            "Free some space or choose another output folder."
        )


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's names to the disk, where the system lets folders be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync folders and say so; they lose nothing by
        # it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _size(count: float) -> str:
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.0f} bytes" if units[0] == "bytes" else f"{count:.1f} {units[0]}"

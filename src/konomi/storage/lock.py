"""One run folder, one run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError, RunError
from konomi.storage import process
from konomi.storage.atomic import explained
from konomi.storage.regular import read_small

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_MAX_BYTES = 4096
_SETTLE_SECONDS = 0.3
"""A holder writes its name just after it got the lock; that long an empty or dead name is not
believed."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock."""

    pid: int
    host: str
    started: str
    """Start of the process in clock ticks since boot; "" if unknown."""
    since: str
    """Local time at which the lock was taken."""

    def is_gone(self) -> bool:
        """Whether it certainly no longer runs."""
        return self.host == socket.gethostname() and not process.is_alive(self.pid, self.started)


class RunLock:
    """`run.lock` in a run folder, held from `acquire` to `release` or for a `with` block.

    The system's advisory lock decides where there is one, so a lock of a dead process is simply
    free. Where there is none (Windows, some network disks), or where a forked child outlived its
    parent, the process named in the file decides.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / "run.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises RunError naming the holder if another run has it."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(3):
                if self._try_once():
                    return
        raise RunError(f"{self.path}: cannot be locked; another run keeps taking it. Try again.")

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is None:
            return
        # A disk that refuses leaves a free lock behind, which the next run takes.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self.path.stat()):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _try_once(self) -> bool:
        descriptor = self._open()
        keep = False
        try:
            locked = _flock(descriptor)
            if locked is not True:
                self._check_holder(free_if_unnamed=locked is None)
                if locked is False:
                    # The named process is gone but something still holds the old file: start a new
                    # one.
                    self.path.unlink(missing_ok=True)
                    return False
            if not self._is_current(descriptor):
                return False
            _write_holder(descriptor)
            self._descriptor = descriptor
            keep = True
            return True
        finally:
            if not keep:
                os.close(descriptor)

    def _open(self) -> int:
        """Never what a link points to, nor a pipe or device: the file is emptied before it is
        written.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        if self.path.is_symlink():
            raise RunError(f"{self.path}: is a link, where the lock of a run should be. Remove it.")
        descriptor = os.open(self.path, flags, 0o644)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RunError(
                f"{self.path}: is not a regular file, where the lock of a run should be. Remove it."
            )
        return descriptor

    def _check_holder(self, *, free_if_unnamed: bool) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            holder = read_holder(self.path)
            if holder is not None and not holder.is_gone():
                raise RunError(
                    f"{self.path.parent}: another run is using this folder (process {holder.pid} "
                    f"on {holder.host}, since {holder.since}). Wait for it, stop it, or choose "
                    "another output folder"
                    + (
                        "."
                        if holder.host == socket.gethostname()
                        else f"; if it is over, delete {self.path}."
                    )
                )
            if time.monotonic() > deadline or (holder is None and free_if_unnamed):
                return
            time.sleep(0.05)

    def _is_current(self, descriptor: int) -> bool:
        # Between opening and locking, the previous holder may have removed the file; then this is
        # a lock on nothing.
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False


def read_holder(path: Path) -> Holder | None:
    """Who is named in a lock file; None if nobody readable is."""
    try:
        holder = Holder(**parse_json(read_small(path, _MAX_BYTES, "lock of a run")))
    except (FileFormatError, ValueError, TypeError):
        return None
    words = (holder.host, holder.started, holder.since)
    known = (
        type(holder.pid) is int
        and 0 < holder.pid < 2**31
        and all(isinstance(word, str) for word in words)
    )
    return holder if known else None


def _flock(descriptor: int) -> bool | None:
    """True: got it. False: somebody has it. None: this system or disk has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _write_holder(descriptor: int) -> None:
    pid = os.getpid()
    holder = Holder(
        pid, socket.gethostname(), process.start_time(pid), time.strftime("%Y-%m-%d %H:%M:%S")
    )
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(asdict(holder)).encode())
    os.fsync(descriptor)

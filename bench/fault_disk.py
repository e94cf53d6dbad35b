"""What a process does to the files below a folder, told event by event; used by
`bench/faults.py`.
"""

import builtins
import fcntl
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FOLDERS = {
    "os.mkdir": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
}
"""Events of the standard library, and where in their arguments the folder stands that a relative
name is in."""
PATHS = {"os.truncate", "os.utime", "os.chmod"}


class Disk:
    """Tells `before(number, event, path)` of each event below `folder` before it happens, from
    `install` on.

    Events: a file is opened to write, written to, written to by half (the first half is there by
    then), synced, renamed, removed, linked, cut; a folder is made or removed. What `before` raises
    is raised by the call.
    """

    def __init__(self, folder: Path, before: Callable[[int, str, str], None]) -> None:
        self.folder = f"{folder}/"
        self.before = before
        self.count = 0
        self.busy = False

    def event(self, name: str, path: object) -> None:
        """Before something is done to a path or descriptor."""
        if self.busy:
            return
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
        where = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not where.startswith(self.folder):
            return
        number, self.count = self.count, self.count + 1
        self.busy = True
        try:
            self.before(number, name, where.removeprefix(self.folder))
        finally:
            self.busy = False

    def install(self) -> None:
        """For good: a process whose files are watched ends soon."""

        def audit(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
                self.event("open", arguments[0])
            elif name in FOLDERS:
                folder = arguments[FOLDERS[name]]
                inside = isinstance(folder, int) and folder >= 0
                self.event(
                    name,
                    f"{_folder(folder)}/{os.fsdecode(arguments[0])}" if inside else arguments[0],
                )
            elif name in PATHS:
                self.event(name, arguments[0])

        really_write, really_sync, really_open = os.write, os.fsync, io.open

        def write(descriptor: int, data: Any) -> int:
            return self._in_halves(
                descriptor, memoryview(data), lambda part: really_write(descriptor, part)
            )

        def sync(descriptor: int) -> None:
            self.event("fsync", descriptor)
            really_sync(descriptor)

        class Told(io.FileIO):
            """An unbuffered file; what buffers above it comes down here as the system would
            get it.
            """

            def write(told, data: Any) -> int:
                return self._in_halves(told.fileno(), memoryview(data).cast("B"), super().write)

        def told_open(
            file: Any, mode: str = "r", buffering: int = -1, *others: Any, **named: Any
        ) -> Any:
            if not set(mode) & set("wax+"):
                return really_open(file, mode, buffering, *others, **named)
            layers = (
                dict(zip(("encoding", "errors", "newline", "closefd", "opener"), others)) | named
            )
            raw = Told(
                file,
                mode.replace("b", "").replace("t", ""),
                layers.pop("closefd", True),
                layers.pop("opener", None),
            )
            if buffering == 0:
                return raw
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return (
                binary
                if "b" in mode
                else io.TextIOWrapper(binary, **layers, line_buffering=buffering == 1)
            )

        sys.addaudithook(audit)
        os.write, os.fsync = write, sync  # type: ignore[assignment]
        io.open = builtins.open = told_open  # type: ignore[assignment]

    def _in_halves(
        self, descriptor: int, data: memoryview, write: Callable[[Any], int | None]
    ) -> int:
        self.event("write", descriptor)
        half = len(data) // 2
        written = write(data[:half]) or 0
        if written < half:
            return written
        self.event("write the second half", descriptor)
        return written + (write(data[half:]) or 0)


def follow(kept: Path, copy: Path) -> None:
    """Point this process's open files below `kept` to their copies, with place, flags and lock."""
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        try:
            path = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # That of the listing itself.
        if not path.startswith(f"{kept}/") or path.endswith(" (deleted)"):
            continue
        facts = Path(f"/proc/self/fdinfo/{number}").read_text(encoding="ascii")
        position, flags = (
            int(facts.split(f"{word}:")[1].split()[0], base)
            for word, base in (("pos", 10), ("flags", 8))
        )
        other = os.open(
            f"{copy}/{path.removeprefix(f'{kept}/')}",
            flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC),
        )
        os.lseek(other, position, os.SEEK_SET)
        os.dup2(other, number)
        os.close(other)
        if "FLOCK" in facts:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def copied(source: Path, target: Path) -> None:
    """Everything in a folder, with times and links as they are."""
    shutil.copytree(source, target, symlinks=True)


def _folder(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115

"""What earlier scans learned of each file, so that an unchanged one need not be opened again.

A jsonl file: a header, a line per file, and a last line with the checksum of all before it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from konomi.data.containers import Entry
from konomi.errors import DataError, RunError
from konomi.storage.atomic import sweep_temporaries, write_file

_VERSION = 2

State = tuple[int, int, int, int]
"""Size, time of the last change of the content and of anything (ns), inode: a file of which all
are the same is the same."""


class Measured(NamedTuple):
    """What a look into a file tells."""

    content: str
    """Hex digest of all its bytes."""
    width: int
    """Pixels, after EXIF turning."""
    height: int
    reason: str = ""
    """Why it is no usable image; then the other fields say nothing."""
    drawn: bool = False
    """Whether it says that konomi drew it."""


class FileIndex:
    """(locator, state) -> `Measured`. `path` None: nothing is remembered.

    `readers` names what images are read with: a file that other readers refused is looked at again.
    """

    def __init__(self, path: Path | None, readers: str = "") -> None:
        self.path = path
        self.warning = ""
        self._header = {"konomi_file_index": _VERSION, "readers": readers}
        self._known: dict[str, tuple[State, Measured]] = {}
        self._changed = False
        if path is not None and path.exists():
            self._load(path)

    def get(self, entry: Entry) -> Measured | None:
        """What is known of a file, if it is still the same."""
        state, measured = self._known.get(_key(entry), (None, None))
        return measured if state == state_of(entry) else None

    def put(self, entry: Entry, measured: Measured) -> None:
        if self.path is not None:
            self._known[_key(entry)] = (state_of(entry), measured)
            self._changed = True

    def save(self) -> None:
        """Replace the file in one move, if anything is new.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.path is None or not self._changed:
            return
        try:
            with write_file(self.path) as temporary, temporary.open("wb") as stream:
                digest = hashlib.blake2b(digest_size=16)
                for line in self._lines():
                    digest.update(line)
                    stream.write(line)
                stream.write(json.dumps({"checksum": digest.hexdigest()}).encode() + b"\n")
            sweep_temporaries(self.path.parent)
        except (RunError, OSError) as error:
            raise DataError(
                f"{error} That is where what is known of images is kept (data.cache.folder)."
            ) from error
        self._changed = False

    def _lines(self) -> Iterator[bytes]:
        yield json.dumps(self._header).encode() + b"\n"
        for locator, (state, measured) in self._known.items():
            # ASCII escapes keep names that are not valid UTF-8.
            yield json.dumps([locator, *state, *measured]).encode() + b"\n"

    def _load(self, path: Path) -> None:
        known: dict[str, tuple[State, Measured]] = {}
        digest = hashlib.blake2b(digest_size=16)
        checked = False
        try:
            with path.open("rb") as stream:
                header = stream.readline()
                told = json.loads(header)
                if told.get("konomi_file_index") == 1:
                    return  # Of an earlier konomi, which looked at less.
                if told.get("konomi_file_index") != _VERSION:
                    raise ValueError("unknown version")
                same_readers = told == self._header
                digest.update(header)
                for line in stream:
                    row = json.loads(line)
                    if isinstance(row, dict):
                        checked = row.get("checksum") == digest.hexdigest()
                        break
                    digest.update(line)
                    locator, size, mtime_ns, ctime_ns, inode, *measured = row
                    if same_readers or not measured[3]:
                        known[locator] = ((size, mtime_ns, ctime_ns, inode), Measured(*measured))
            if not checked:
                raise ValueError("the checksum does not fit")
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            self.warning = (
                f"{path}: the image index is damaged ({error}); it is built again, "
                "which reads every image once"
            )
            self._changed = True
            return
        self._known = known


def state_of(entry: Entry) -> State:
    """What tells whether a file has changed, without opening it."""
    return entry.size, entry.mtime_ns, entry.ctime_ns, entry.inode


def _key(entry: Entry) -> str:
    # A relative path means another file in another working directory.
    return os.path.abspath(entry.locator)  # noqa: PTH100

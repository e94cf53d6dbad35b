"""What earlier scans learned of each file, so that an unchanged one need not be opened again.

A jsonl file: a header, a line per file, and a last line with the checksum of all before it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from konomi.data.containers import Entry
from konomi.errors import DataError

_VERSION = 1


class Measured(NamedTuple):
    """What a look into a file tells."""

    content: str
    """Hex digest of all its bytes."""
    width: int
    """Pixels, after EXIF turning."""
    height: int
    reason: str = ""
    """Why it is no usable image; then the other fields say nothing."""


class FileIndex:
    """(locator, size, mtime) -> `Measured`. `path` None: nothing is remembered."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.warning = ""
        self._known: dict[str, tuple[int, int, Measured]] = {}
        self._changed = False
        if path is not None and path.exists():
            self._load(path)

    def get(self, entry: Entry) -> Measured | None:
        """What is known of a file, if it is still the same."""
        size, mtime_ns, measured = self._known.get(_key(entry), (-1, -1, None))
        return measured if (size, mtime_ns) == (entry.size, entry.mtime_ns) else None

    def put(self, entry: Entry, measured: Measured) -> None:
        if self.path is not None:
            self._known[_key(entry)] = (entry.size, entry.mtime_ns, measured)
            self._changed = True

    def save(self) -> None:
        """Replace the file in one move, if anything is new.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.path is None or not self._changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f"{self.path.name}.", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as stream:
                    digest = hashlib.blake2b(digest_size=16)
                    for line in self._lines():
                        digest.update(line)
                        stream.write(line)
                    stream.write(json.dumps({"checksum": digest.hexdigest()}).encode() + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                Path(temporary).replace(self.path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{self.path}: the image index cannot be written ({error.strerror})") from error
        self._changed = False

    def _lines(self) -> Iterator[bytes]:
        yield json.dumps({"konomi_file_index": _VERSION}).encode() + b"\n"
        for locator, (size, mtime_ns, measured) in self._known.items():
            # ASCII escapes keep names that are not valid UTF-8.
            yield json.dumps([locator, size, mtime_ns, *measured]).encode() + b"\n"

    def _load(self, path: Path) -> None:
        known: dict[str, tuple[int, int, Measured]] = {}
        digest = hashlib.blake2b(digest_size=16)
        checked = False
        try:
            with path.open("rb") as stream:
                header = stream.readline()
                if json.loads(header) != {"konomi_file_index": _VERSION}:
                    raise ValueError("unknown version")
                digest.update(header)
                for line in stream:
                    row = json.loads(line)
                    if isinstance(row, dict):
                        checked = row.get("checksum") == digest.hexdigest()
                        break
                    digest.update(line)
                    locator, size, mtime_ns, content, width, height, reason = row
                    known[locator] = (size, mtime_ns, Measured(content, width, height, reason))
            if not checked:
                raise ValueError("the checksum does not fit")
        except (OSError, ValueError, TypeError) as error:
            self.warning = (
                f"{path}: the image index is damaged ({error}); it is built again, which reads every image once"
            )
            self._changed = True
            return
        self._known = known


def _key(entry: Entry) -> str:
    # A relative path means another file in another working directory.
    return os.path.abspath(entry.locator)  # noqa: PTH100

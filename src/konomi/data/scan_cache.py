"""What earlier commands found out about whole data sets, so that an unchanged one costs one look
at each file's state.

Three kinds of file in the cache folder: `scans/KEY.json`, a manifest with the state of all it was
made of; `scans/KEY-WHAT.json`, something worked out from such a manifest; and `whole-images`, the
images that were decoded to their end. Each has a checksum; one that is damaged counts as absent.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from konomi.config.sections import DataConfig
from konomi.data.caption_files import CAPTION_FOLDERS
from konomi.data.containers import is_junk, split_locator
from konomi.data.manifest import Excluded, Finding, Manifest, Record
from konomi.data.pixels import readers
from konomi.data.preflight import CLASS_FOLDERS
from konomi.data.sources import scan, watched_paths
from konomi.errors import RunError
from konomi.hardware.garbage_collection import gc_paused
from konomi.storage.atomic import sweep_temporaries, write_file

_VERSION = 1
_KEPT = 40
"""Files of scans that are kept; the oldest go first."""
_FIELDS = tuple(field.name for field in fields(Record))
_DIGEST = 16
_NEVER_THE_SAME = "cannot be read"
"""In the reason of a file left out that may be mended without changing: such a scan is not
cached."""


def cached_scan(data: DataConfig, folder: Path) -> Manifest:
    """What `scan` gives, from the cache where no file has changed since. `folder`: the cache
    folder.

    Raises as `scan`.
    """
    import konomi

    key = _hex(
        f"{_VERSION} {konomi.__version__} {readers()} {Path.cwd()} {data.sources!r} "
        f"{data.captions.lines}"
    )[:24]
    path = folder / "scans" / f"{key}.json"
    state = _state(watched_paths(data))
    if state:
        content = _read(path)
        if content is not None and content.get("state") == state:
            return _manifest(content, f"{key}{state}")
    manifest = scan(data, index=folder / "images.jsonl")
    if state and not any(_NEVER_THE_SAME in bad.reason for bad in manifest.excluded):
        _write(path, {"state": state} | _plain(manifest))
        return replace(manifest, cache_key=f"{key}{state}")
    return manifest


class CachedResult:
    """Something worked out from a manifest and settings that `facts` name, cached beside its
    scan."""

    def __init__(self, folder: Path, manifest: Manifest, what: str, facts: object) -> None:
        self._path: Path | None = None
        if manifest.cache_key:
            key = manifest.cache_key
            name = f"{key[:24]}-{what}-{_hex(repr((key, facts)))[:16]}.json"
            self._path = folder / "scans" / name

    def get(self) -> dict[str, Any] | None:
        return None if self._path is None else _read(self._path)

    def put(self, content: dict[str, Any]) -> None:
        if self._path is not None:
            _write(self._path, content)


class VerifiedImages:
    """The images that have been decoded to their end without a fault, by content. `folder` None
    remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "whole-images"
        self._known: set[bytes] = set()
        self._new: list[bytes] = []
        self._header = hashlib.blake2b(readers().encode(), digest_size=_DIGEST).digest()
        if self._path is not None and self._path.is_file():
            try:
                data = self._path.read_bytes()
            except OSError:
                return
            body = data[_DIGEST:]
            if data[:_DIGEST] == hashlib.blake2b(self._header + body, digest_size=_DIGEST).digest():
                self._known = {
                    body[start : start + _DIGEST] for start in range(0, len(body), _DIGEST)
                }

    def __contains__(self, record: object) -> bool:
        return isinstance(record, Record) and self._key(record) in self._known

    def add(self, record: Record) -> None:
        self._new.append(self._key(record))

    def save(self) -> None:
        """Store what was added. A disk that refuses costs the cache entry, and nothing else."""
        if self._path is None or not self._new:
            return
        body = b"".join(sorted(self._known.union(self._new)))
        try:
            with write_file(self._path) as temporary:
                temporary.write_bytes(
                    hashlib.blake2b(self._header + body, digest_size=_DIGEST).digest() + body
                )
            sweep_temporaries(self._path.parent)
        except RunError:
            return
        self._known.update(self._new)
        self._new = []

    def _key(self, record: Record) -> bytes:
        if not (record.mask or record.attention):
            return bytes.fromhex(record.content[: 2 * _DIGEST])
        facts = f"{record.content} {_file_state(record.mask)} {_file_state(record.attention)}"
        return hashlib.blake2b(facts.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def _file_state(locator: str) -> str:
    if not locator:
        return ""
    try:
        status = Path(split_locator(locator)[0]).stat()
    except OSError:
        return "absent"
    return f"{locator} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _state(paths: Iterable[Path] | None) -> str:
    """A digest of the names, sizes, times and inodes of all files at these places; "" where it
    cannot be told.
    """
    if paths is None:
        return ""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    try:
        for path in paths:
            for row in _rows(os.path.abspath(path)):  # noqa: PTH100
                digest.update(row.encode("utf-8", "surrogatepass"))
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()


def _rows(root: str) -> Iterator[str]:
    status = os.stat(root)  # noqa: PTH116
    yield f"\0{root}\0{_numbers(status)}"
    if not stat.S_ISDIR(status.st_mode):
        return
    # What lies beside it is spoken about (captions, class images).
    with os.scandir(os.path.dirname(os.path.realpath(root))) as found:  # noqa: PTH120
        beside = [item for item in found if item.name.lower() in (*CAPTION_FOLDERS, *CLASS_FOLDERS)]
        yield "\0".join(sorted(f"{item.name} {item.stat().st_mtime_ns}" for item in beside))
    pending = [root]
    while pending:
        folder = pending.pop()
        rows = []
        folders = []
        with os.scandir(folder) as found:
            for item in found:
                if is_junk(item.name):
                    continue
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                    continue
                status = item.stat(follow_symlinks=False)
                row = f"{item.name}\0{_numbers(status)}"
                if stat.S_ISLNK(status.st_mode):
                    row += f"\0{os.path.realpath(item.path)}\0{_file_state(item.path)}"
                rows.append(row)
        yield f"\0\0{folder}\0" + "\0".join(sorted(rows))
        pending += sorted(folders)


def _numbers(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _plain(manifest: Manifest) -> dict[str, Any]:
    """Column by column: that is read several times faster than an object for each image."""
    return {
        "records": {
            name: [getattr(record, name) for record in manifest.records] for name in _FIELDS
        },
        "excluded": [[bad.name, bad.reason] for bad in manifest.excluded],
        "findings": [[finding.message, finding.names] for finding in manifest.findings],
    }


@gc_paused()
def _manifest(content: dict[str, Any], cache_key: str) -> Manifest:
    columns = content["records"]
    columns["captions"] = map(tuple, columns["captions"])
    rows = zip(*(columns[name] for name in _FIELDS))
    return Manifest(
        tuple(Record(**dict(zip(_FIELDS, row))) for row in rows),
        tuple(Excluded(name=name, reason=reason) for name, reason in content["excluded"]),
        tuple(Finding(message, tuple(names)) for message, names in content["findings"]),
        cache_key,
    )


@gc_paused()
def _read(path: Path) -> dict[str, Any] | None:
    """What `_write` wrote; None where there is no such file, or it is damaged."""
    try:
        data = path.read_bytes()
        if data[: 2 * _DIGEST] != _hex(data[2 * _DIGEST :]).encode():
            return None
        content = json.loads(data[2 * _DIGEST :])
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    """A disk that refuses costs the cache entry, and nothing else: what it is made from is
    there."""
    body = json.dumps(content, separators=(",", ":")).encode()
    try:
        with write_file(path) as temporary:
            temporary.write_bytes(_hex(body).encode() + body)
        sweep_temporaries(path.parent)
        others = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        for old in others[:-_KEPT]:
            old.unlink(missing_ok=True)
    except (RunError, OSError):
        return


def _hex(data: bytes | str) -> str:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.blake2b(raw, digest_size=_DIGEST).hexdigest()

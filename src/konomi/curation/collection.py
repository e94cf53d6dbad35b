"""The folder that pictures are collected into: the pictures, a caption beside each, and
`metadata.jsonl` with where each comes from.

A line of that table is written when its picture is whole and lies in its place. What has no line is
fetched again, and what has one never is, also where the picture was removed since.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from konomi.config.parse import parse_json
from konomi.curation.sites.site import Post
from konomi.errors import DataError, printable
from konomi.storage.atomic import explained, sweep_temporaries, write_file, write_text


class NotAPicture(DataError):
    """A file that came in place of a picture."""


TABLE = "metadata.jsonl"
_SIGNS = (
    (b"\x89PNG\r\n\x1a\n", 0, ".png"),
    (b"\xff\xd8\xff", 0, ".jpg"),
    (b"GIF8", 0, ".gif"),
    (b"WEBP", 8, ".webp"),
    (b"ftypavif", 4, ".avif"),
)
"""First bytes of a file, where they stand, and the suffix of its kind."""
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Examined:
    """A fetched picture."""

    suffix: str
    """Of its kind, by its first bytes."""
    md5: str
    """As sites tell it."""
    sha256: str


@dataclass(slots=True)
class Collection:
    """What a folder holds of one site."""

    folder: Path
    site: str
    known: set[int] = field(default_factory=set)
    """Ids of its posts that were collected, whether or not they are still there."""
    hashes: set[str] = field(default_factory=set)
    """md5 of every collected picture, of any site."""
    present: int = 0
    """Pictures of this site that are still there."""

    def add(self, post: Post, file: Path, found: Examined, caption: str | None) -> Path:
        """Move a fetched file to its place, write its caption and then its line.

        found: what `examine` said of the file.

        Raises RunError for a disk that refuses.
        """
        name = f"{self.site}-{post.id}{found.suffix}"
        with explained(self.folder / name):
            file.replace(self.folder / name)
        if caption is not None:
            write_text(self.folder / f"{self.site}-{post.id}.txt", caption + "\n")
        line = {
            "file_name": name,
            "site": self.site,
            "id": post.id,
            "source": post.source,
            "artist": list(post.groups.get("artist", ())),
            "rating": post.rating,
            "score": post.score,
            "md5": found.md5,
            "sha256": found.sha256,
            "tags": {group: list(tags) for group, tags in post.groups.items()}
            or {"all": list(post.tags)},
        }
        with explained(self.folder / TABLE), (self.folder / TABLE).open("ab") as table:
            table.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            table.flush()
            os.fsync(table.fileno())
        self.known.add(post.id)
        self.hashes.add(found.md5)
        self.present += 1
        return self.folder / name


def open_collection(folder: Path, site: str) -> Collection:
    """What was collected before. The end of a table that a stop cut off is taken away.

    Raises DataError for a table that is none, RunError for a disk that refuses.
    """
    collection, path = Collection(folder, site), folder / TABLE
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        sweep_temporaries(folder)
        for cut_off in folder.glob(f".{site}-*.part"):
            cut_off.unlink()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with write_file(path) as temporary:
            temporary.write_bytes(whole)
    for number, line in enumerate(whole.splitlines(), start=1):
        row = _row(line, f"{printable(str(path))}, line {number}")
        collection.hashes.add(str(row.get("md5", "")))
        if row.get("site") == site and isinstance(row.get("id"), int):
            collection.known.add(row["id"])
            collection.present += (folder / Path(str(row.get("file_name"))).name).is_file()
    return collection


def examine(file: Path) -> Examined:
    """What a fetched file is. Raises NotAPicture for what is none."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with file.open("rb") as stream:
        suffix = _suffix_of(stream.read(32))
        stream.seek(0)
        while piece := stream.read(_PIECE):
            md5.update(piece)
            sha256.update(piece)
    return Examined(suffix, md5.hexdigest(), sha256.hexdigest())


def _suffix_of(head: bytes) -> str:
    for sign, place, suffix in _SIGNS:
        if head[place : place + len(sign)] == sign:
            return suffix
    if head.lstrip()[:1] == b"<":
        raise NotAPicture("a page in HTML in place of a picture")
    raise NotAPicture("no picture")


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line) if line.strip() else {}
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object such as " + '{"file_name": "a.png"}')
    return row

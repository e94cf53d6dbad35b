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

    def add(self, post: Post, file: Path, caption: str | None) -> Path:
        """Move a fetched file to its place, write its caption and then its line.

        Raises NotAPicture for what is none, RunError for a disk that refuses.
        """
        suffix = kind_of(file)
        md5, sha256 = _digests(file)
        name = f"{self.site}-{post.id}{suffix}"
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
            "md5": md5,
            "sha256": sha256,
            "tags": {group: list(tags) for group, tags in post.groups.items()}
            or {"all": list(post.tags)},
        }
        with explained(self.folder / TABLE), (self.folder / TABLE).open("ab") as table:
            table.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            table.flush()
            os.fsync(table.fileno())
        self.known.add(post.id)
        self.hashes.add(md5)
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


def kind_of(file: Path) -> str:
    """The suffix of a picture, by its first bytes. Raises NotAPicture for what is none."""
    with file.open("rb") as stream:
        head = stream.read(32)
    for sign, place, suffix in _SIGNS:
        if head[place : place + len(sign)] == sign:
            return suffix
    if head.lstrip()[:1] == b"<":
        raise NotAPicture("a page in HTML in place of a picture")
    raise NotAPicture("no picture")


def md5_of(file: Path) -> str:
    """As sites tell it."""
    return _digests(file)[0]


def _digests(file: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            md5.update(piece)
            sha256.update(piece)
    return md5.hexdigest(), sha256.hexdigest()


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line) if line.strip() else {}
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object such as " + '{"file_name": "a.png"}')
    return row

"""WebDataset shards: tar files whose neighbours of one stem (`0001.jpg`, `0001.txt`) form a sample.

A shard is read once from front to back, holding one sample at a time; afterwards each image is
reached by its offset.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from konomi.config.parse import parse_json
from konomi.data.containers import Entry, is_junk, natural_key, read_bytes
from konomi.data.encodings import decode_text
from konomi.data.manifest import Excluded
from konomi.data.metadata import captions_of
from konomi.data.tree import IMAGE_SUFFIXES, Candidate, Place, Tree, record_of
from konomi.errors import DataError, MissingExtraError, printable
from konomi.storage.home import expanded

MAX_SHARDS = 100_000
_MASK_SUFFIX = "mask.png"

_REMOTE = re.compile(r"(?:[a-z][a-z0-9+.-]+://|pipe:)", re.IGNORECASE)


class _Member(NamedTuple):
    offset: int
    size: int
    name: str


def is_shard_pattern(path: str) -> bool:
    """`shard.tar`, or braces such as `shard-{000..003}.tar`."""
    return path.lower().endswith(".tar") or (".tar" in path.lower() and "{" in path)


def expand_shards(pattern: str) -> list[Path]:
    """The files a brace pattern stands for.

    Raises:
        DataError: not local, none, or too many.
        MissingExtraError: webdataset is not installed.
    """
    if _REMOTE.match(pattern):
        raise DataError(
            f"{printable(pattern)}: only .tar files on this machine are read. Download the shards "
            "first."
        )
    _webdataset()
    from braceexpand import braceexpand

    found: list[Path] = []
    try:
        for name in braceexpand(pattern):
            found.append(expanded(name))
            if len(found) > MAX_SHARDS:
                raise DataError(
                    f"{printable(pattern)}: more than {MAX_SHARDS} shards. Check the numbers in "
                    "braces."
                )
    except ValueError as error:
        raise DataError(f"{printable(pattern)}: a brace is not closed ({error})") from error
    return found


def read_shard(path: Path, place: Place) -> Tree:
    """All samples of one shard, in the order of the file.

    Raises:
        DataError: not a plain tar file, damaged, or with a caption that cannot be read.
    """
    tree = Tree()
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            f"{printable(str(path))}: cannot be read ({error.strerror}). Check the path."
        ) from error
    for sample in _samples(path):
        images = [member for suffix, member in sample.items() if _is_image(suffix)]
        if not images:
            continue
        picture, *others = images
        for other in others:
            reason = f"a second image in the sample of {printable(picture.name)}"
            tree.excluded.append(
                Excluded(name=printable(f"{path.name}/{other.name}"), reason=reason)
            )
        times = status.st_mtime_ns, status.st_ctime_ns
        entry = Entry(
            f"{path.name}/{picture.name}",
            _locator(path, picture),
            picture.size,
            *times,
            status.st_ino,
        )
        captions = _captions(path, sample)
        mask = sample.get(_MASK_SUFFIX)
        record = record_of(entry, captions, place, mask=_locator(path, mask) if mask else "")
        tree.candidates.append(Candidate(entry, record, True, bool(captions)))
    tree.candidates.sort(key=lambda candidate: natural_key(candidate.entry.name))
    return tree


def _is_image(suffix: str) -> bool:
    # "0001.left.jpg" has the suffix "left.jpg".
    return suffix != _MASK_SUFFIX and f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES


def _webdataset() -> Any:
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise MissingExtraError("webdataset", "webdataset", "Reading .tar shards") from error
    return tariterators


def _samples(path: Path) -> Iterator[dict[str, _Member]]:
    """Suffix -> where its bytes lie, sample by sample, grouped as the webdataset library groups
    them.
    """
    group = _webdataset().group_by_keys
    try:
        for sample in group(_members(path)):
            yield {suffix: value for suffix, value in sample.items() if isinstance(value, _Member)}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{printable(str(path))}: not a readable .tar ({error}). Copy it again; a compressed "
            "one must be unpacked."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{printable(str(path))}: two files of one name in one sample ({error.args[0]})"
        ) from error


def _members(path: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            # Forget members already seen: tarfile keeps them all otherwise.
            tar.members = []  # type: ignore[attr-defined]
            if info.isreg() and not info.issparse() and not is_junk(info.name.removeprefix("./")):
                member = _Member(info.offset_data, info.size, info.name)
                yield {"fname": info.name, "data": member, "__url__": str(path)}
        # tarfile takes a damaged header for the end of the archive.
        with path.open("rb") as stream:
            stream.seek(tar.offset)
            if any(stream.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")


def _locator(path: Path, member: _Member) -> str:
    return f"{path}::{member.offset}+{member.size}::{member.name}"


def _captions(path: Path, sample: dict[str, _Member]) -> tuple[str, ...]:
    for suffix in ("txt", "caption", "text"):
        if member := sample.get(suffix):
            where = f"{path.name}/{member.name}"
            text = " ".join(decode_text(read_bytes(_locator(path, member)), where).split())
            if text:
                return (text,)
    if member := sample.get("json"):
        where = f"{path.name}/{member.name}"
        try:
            row = parse_json(decode_text(read_bytes(_locator(path, member)), where))
        except ValueError as error:
            raise DataError(f"{printable(where)}: not valid JSON ({error})") from error
        return captions_of(row, printable(where)) if isinstance(row, dict) else ()
    return ()

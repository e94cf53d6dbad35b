"""From the sources a recipe names to the manifest: every image, in a fixed order, or the reason it
is left out.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from konomi.config.sections import CaptionConfig, DataConfig, SourceConfig
from konomi.data.captions import CAPTION_SUFFIXES
from konomi.data.containers import Entry, Listing, list_folder, list_image, list_zip, read_bytes
from konomi.data.file_index import FileIndex, Measured
from konomi.data.kohya_dataset import read_dataset_toml
from konomi.data.manifest import Excluded, Finding, Manifest, Record
from konomi.data.pixels import BadImageError, is_drawn_here, readers, size_of
from konomi.data.preflight import (
    all_excluded,
    caption_findings,
    duplicate_findings,
    folder_findings,
    level_findings,
    missing_path,
    nothing_found,
    origin_findings,
)
from konomi.data.tar_shards import expand_shards, is_shard_pattern, read_shard
from konomi.data.tree import IMAGE_SUFFIXES, Place, Tree, read_tree
from konomi.errors import DataError, KonomiError, printable
from konomi.storage.home import expanded

TABLE_SUFFIXES = (".jsonl", ".csv", ".json")


def scan(
    data: DataConfig,
    *,
    index: Path | None = None,
    measure: Callable[[Entry], Measured] | None = None,
) -> Manifest:
    """List all images of a recipe, by source, then by name in natural order.

    Reads names, captions and, of images new or changed since `index` was written, the bytes for
    their digest and size; an unchanged image is not opened. Pixels are not decoded: see
    `konomi.data.images.verify`.

    Args:
        index: a file that remembers digests and sizes between scans; None remembers nothing.
        measure: what looks into a file; for tests and benchmarks.

    Raises:
        DataError: a source is missing, unreadable or without images; a caption or table cannot be
        read.
    """
    if not data.sources:
        raise DataError(
            "data.sources is empty: no images to train on. Give a folder with --images DIR."
        )
    known = FileIndex(index, readers())
    records: list[Record] = []
    excluded: list[Excluded] = []
    findings = [Finding(known.warning)] if known.warning else []
    for source in data.sources:
        trees = list(read_source(source, data.captions))
        found: list[Record] = []
        refused: list[Excluded] = []
        for tree in trees:
            findings += tree.findings
            refused += tree.excluded
            _measure_all(tree, known, measure or measure_file, found, refused)
        if not found:
            raise all_excluded(refused)
        records += found
        excluded += refused
    known.save()
    findings += duplicate_findings(records) + origin_findings(records)
    return Manifest(tuple(records), tuple(excluded), tuple(findings))


def measure_file(entry: Entry) -> Measured:
    """Digest (SHA-256) and size of one image, from its bytes."""
    try:
        data = read_bytes(entry.locator)
        width, height = size_of(data)
    except BadImageError as error:
        return Measured("", 0, 0, str(error))
    return Measured(hashlib.sha256(data).hexdigest(), width, height, drawn=is_drawn_here(data))


def _measure_all(
    tree: Tree,
    known: FileIndex,
    measure: Callable[[Entry], Measured],
    records: list[Record],
    excluded: list[Excluded],
) -> None:
    for candidate in tree.candidates:
        measured = known.get(candidate.entry)
        if measured is None:
            try:
                measured = measure(candidate.entry)
            except DataError as error:
                # Not remembered: permissions and vanished files may be mended without the file
                # changing.
                excluded.append(Excluded(name=candidate.record.name, reason=str(error)))
                continue
            known.put(candidate.entry, measured)
        content, width, height, reason, drawn = measured
        if not reason:
            records.append(
                replace(candidate.record, content=content, width=width, height=height, drawn=drawn)
            )
        elif candidate.certain:
            excluded.append(Excluded(name=candidate.record.name, reason=reason))


def read_source(source: SourceConfig, captions: CaptionConfig) -> Iterator[Tree]:
    """What lies in each place of one source; images are not yet opened.

    Raises:
        DataError: see `scan`.
        MissingExtraError: .tar shards without the webdataset library.
    """
    if is_shard_pattern(source.path):
        place = _place(source, Path(source.path), captions)
        shards = [read_shard(path, place) for path in expand_shards(source.path)]
        yield _with_folder_findings(
            Tree(
                [c for s in shards for c in s.candidates], [x for s in shards for x in s.excluded]
            ),
            place,
        )
        return
    places, findings = _places(source, captions)
    for number, place in enumerate(places):
        tree = _read_place(place)
        tree.findings = [*(findings if number == 0 else ()), *tree.findings]
        yield tree


def watched_paths(data: DataConfig) -> list[Path] | None:
    """The files and folders that decide what `scan` finds; None where a source cannot be read."""
    found: list[Path] = []
    try:
        for source in data.sources:
            if is_shard_pattern(source.path):
                found += expand_shards(source.path)
                continue
            path = expanded(source.path)
            found.append(path)
            for place in _places(source, data.captions)[0]:
                found += [place.path] if place.path != path else []
                found += [place.table] if place.table is not None else []
    except KonomiError:
        return None  # `scan` says why.
    return found


def _places(
    source: SourceConfig, captions: CaptionConfig
) -> tuple[tuple[Place, ...], list[Finding]]:
    path = expanded(source.path)
    if not path.exists():
        raise missing_path(path)
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".toml":
        dataset = read_dataset_toml(path, source)
        lines = captions.lines
        places = [
            p if p.caption_lines != "joined" else replace(p, caption_lines=lines)
            for p in dataset.places
        ]
        return tuple(places), [Finding(problem) for problem in dataset.problems]
    if path.is_file() and suffix in TABLE_SUFFIXES:
        return (replace(_place(source, path.parent, captions), table=path),), []
    return (_place(source, path, captions),), []


def _place(source: SourceConfig, path: Path, captions: CaptionConfig) -> Place:
    return Place(
        path=path,
        role=source.role,
        repeats=source.repeats,
        trigger=source.trigger,
        class_noun=source.class_noun,
        template=source.template,
        caption_lines=captions.lines,
    )


def _read_place(place: Place) -> Tree:
    listing = _list_place(place)
    inside = listing
    if not place.reads_folder_names and place.table is None:
        inside = Listing(
            [entry for entry in listing.entries if "/" not in entry.name], listing.excluded
        )
    tree = read_tree(inside, place)
    if not tree.candidates:
        raise nothing_found(place, listing, tree)
    return _with_folder_findings(tree, place)


def _list_place(place: Place) -> Listing:
    if not place.path.exists():
        raise missing_path(place.path)
    if place.path.is_dir():
        return list_folder(place.path)
    if place.path.suffix.lower() in IMAGE_SUFFIXES:
        return list_image(place.path, CAPTION_SUFFIXES)
    if place.path.is_file():
        return list_zip(place.path)
    raise DataError(
        f"{printable(str(place.path))}: neither a folder nor a file. Give a folder of images."
    )


def _with_folder_findings(tree: Tree, place: Place) -> Tree:
    if not tree.candidates:
        raise DataError(f"{printable(str(place.path))}: no images in it. Is it the right file?")
    tree.findings += (
        caption_findings(place, tree.candidates)
        + level_findings(place, tree.candidates)
        + folder_findings(place, tree.candidates)
    )
    return tree

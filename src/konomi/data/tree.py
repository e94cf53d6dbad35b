"""What a folder or zip of images means: which files are images, their captions, masks, repeats and
roles.

Knows plain folders, kohya's `10_sks dog` folders, the `img/` + `reg/` layout around those, and
metadata tables. Works on names alone and opens only captions and tables.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from konomi.data.caption_files import CaptionFiles
from konomi.data.captions import CAPTION_SUFFIXES, has_trigger
from konomi.data.containers import Entry, Listing, split_suffix
from konomi.data.manifest import Excluded, Finding, Record
from konomi.data.metadata import METADATA_NAMES, read_kohya_table, read_table
from konomi.errors import DataError, printable

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".avif",
    ".avifs", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".tga", ".jp2", ".j2k",
    ".j2c", ".jpc", ".jpf",
    ".jpx", ".heic", ".heif", ".hif", ".heics", ".heifs",
    # Not readable, and therefore listed with the reason instead of being passed over.
    ".jxl", ".psd", ".psb", ".svg", ".svgz", ".ico", ".icns", ".cur", ".raw", ".cr2", ".cr3",
    ".nef", ".arw", ".dng",
    ".orf", ".rw2", ".raf", ".pef", ".srw", ".eps", ".ps", ".ai", ".pcx", ".dcx", ".sgi", ".rgb",
    ".bw", ".ras", ".dds",
    ".exr", ".hdr", ".xcf", ".kra", ".clip", ".wmf", ".emf", ".xbm", ".xpm", ".fits", ".jxr",
    ".wdp", ".tpic", ".bpg",
))
OTHER_SUFFIXES = frozenset((
    ".txt", ".caption", ".text", ".tags", ".json", ".jsonl", ".csv", ".tsv", ".toml", ".yaml",
    ".yml", ".md", ".html",
    ".log", ".ini", ".xml", ".parquet", ".arrow", ".npz", ".npy", ".pt", ".pth", ".bin", ".ckpt",
    ".safetensors",
    ".zip", ".tar", ".gz", ".7z", ".rar", ".py", ".ipynb", ".sh", ".bat", ".exe", ".pdf", ".doc",
    ".docx", ".mp4",
    ".webm", ".mov", ".mp3", ".wav", ".lock", ".db", ".tmp", ".bak", ".part", ".url", ".lnk",
    ".avi", ".mkv",
))
# fmt: on

# Four digits in front are a year far more often than a thousand repeats.
_KOHYA_FOLDER = re.compile(r"([0-9]{1,3})_(.*\S)\s*", re.DOTALL)
_MASK_MARK = "-masklabel"
_ATTENTION_MARK = "_att"
_IMAGE_FOLDER, _PRIOR_FOLDER = "img", "reg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One folder or zip, and all that its source says about it."""

    path: Path
    role: Literal["train", "prior"] = "train"
    repeats: int = 1
    trigger: str = ""
    class_noun: str = ""
    template: str = ""
    fallback: str = ""
    """Caption of images that have none (sd-scripts' class_tokens)."""
    caption_suffixes: tuple[str, ...] = CAPTION_SUFFIXES
    caption_lines: Literal["joined", "alternatives"] = "joined"
    caption_prefix: str = ""
    caption_suffix: str = ""
    keep_tokens: int | None = None
    shuffle: bool | None = None
    table: Path | None = None
    """A metadata file that names the images: no others are trained."""
    reads_folder_names: bool = True
    """Whether `10_sks dog` in a folder's name counts, and subfolders are read."""


class Candidate(NamedTuple):
    """A file that should be an image; `record` still lacks size and content."""

    entry: Entry
    record: Record
    certain: bool
    """Whether its name says image; if not, and it is none, nobody needs to hear of it."""
    captioned: bool
    """Whether a file or table gave its captions, rather than a folder name or class."""
    folder_words: str = ""
    """What its kohya folder is called."""


@dataclass(slots=True)
class Tree:
    """What was found in a place, in order."""

    candidates: list[Candidate] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class Meaning(NamedTuple):
    """What the folders an image lies in say about it."""

    role: Literal["train", "prior"]
    repeats: int
    words: str = ""
    """What a kohya folder name says after the number."""
    refusal: str = ""


class _Folders:
    """The files of a listing by folder, for looking up neighbours whatever the case of their
    suffix.
    """

    def __init__(self, listing: Listing) -> None:
        self._files: dict[str, dict[str, Entry]] = {}
        for entry in listing.entries:
            folder, _, base = entry.name.rpartition("/")
            stem, suffix = split_suffix(base)
            self._files.setdefault(folder, {})[stem + suffix] = entry

    def find(self, folder: str, stem: str, suffix: str) -> Entry | None:
        return self._files.get(folder, {}).get(stem + suffix)

    def beside(self, folder: str, stem: str) -> bool:
        """Whether an image of that stem lies in the folder."""
        files = self._files.get(folder, {})
        return any(stem + suffix in files for suffix in IMAGE_SUFFIXES)

    def projects(self) -> frozenset[str]:
        """Folders that hold `img/` with numbered folders inside: kohya's project layout."""
        found = set()
        for folder in self._files:
            parts = folder.split("/")
            for depth in range(1, len(parts)):
                if parts[depth - 1].lower() == _IMAGE_FOLDER and _KOHYA_FOLDER.fullmatch(
                    parts[depth]
                ):
                    found.add("/".join(parts[: depth - 1]))
        return frozenset(found)

    def tables(self) -> dict[str, Entry]:
        """Folder -> its metadata table."""
        found: dict[str, Entry] = {}
        for folder, files in self._files.items():
            for name in METADATA_NAMES:
                if name in files:
                    found.setdefault(folder, files[name])
        return found


def read_tree(listing: Listing, place: Place) -> Tree:
    """Candidates of one place with their captions.

    Raises:
        DataError: a caption or table that cannot be read (all bad captions named together).
    """
    tree = Tree(excluded=list(listing.excluded))
    folders = _Folders(listing)
    projects = folders.projects() if place.reads_folder_names else frozenset()
    table = _captions_by_name(listing, folders, place, tree)
    root_name = place.path.stem if place.path.is_file() else place.path.name
    files = CaptionFiles(listing, place.caption_suffixes, lines=place.caption_lines)
    meanings: dict[str, Meaning] = {}
    pictures: list[str] = []
    unreadable: list[str] = []
    for entry in listing.entries:
        folder, _, base = entry.name.rpartition("/")
        stem, suffix = split_suffix(base)
        if suffix in OTHER_SUFFIXES:
            continue
        pictures.append(entry.name)
        if folder not in meanings:
            meanings[folder] = _meaning(folder, root_name, place, projects)
        meaning = meanings[folder]
        certain = suffix in IMAGE_SUFFIXES
        refusal = _not_a_picture(folders, folder, stem, suffix) or meaning.refusal
        if place.table is not None and entry.name not in table:
            refusal = refusal or f"not listed in {printable(place.table.name)}"
        if refusal:
            if certain and refusal != _IS_MASK:
                tree.excluded.append(Excluded(name=printable(entry.name), reason=refusal))
            continue
        try:
            captions = table.get(entry.name) or files.read(entry.name)
        except DataError as error:
            unreadable.append(str(error))
            continue
        mask, attention = (
            folders.find(folder, stem + mark, ".png") for mark in (_MASK_MARK, _ATTENTION_MARK)
        )
        record = record_of(
            entry,
            captions,
            place,
            meaning=meaning,
            mask=mask.locator if mask else "",
            attention=attention.locator if attention else "",
        )
        tree.candidates.append(Candidate(entry, record, certain, bool(captions), meaning.words))
    if unreadable:
        more = f" (and {len(unreadable) - 10} more)" if len(unreadable) > 10 else ""
        raise DataError("; ".join(unreadable[:10]) + more)
    tables = [
        entry.name
        for entry in (_given_table(place, folders) if place.table else folders.tables()).values()
    ]
    tree.findings += files.findings(printable(str(place.path)), pictures, tables=tables)
    return tree


_IS_MASK = "mask"


def _not_a_picture(folders: _Folders, folder: str, stem: str, suffix: str) -> str:
    if stem.endswith(_MASK_MARK):
        owned = folders.beside(folder, stem.removesuffix(_MASK_MARK))
        return _IS_MASK if owned else "a mask without its image"
    if stem.endswith(_ATTENTION_MARK) and folders.beside(
        folder, stem.removesuffix(_ATTENTION_MARK)
    ):
        # `cat_att.png` without a `cat` is a picture; so the name alone does not make a mask.
        return (
            _IS_MASK if suffix == ".png" else "an attention mask (DreamArtist) must be a PNG file"
        )
    return ""


def _captions_by_name(
    listing: Listing, folders: _Folders, place: Place, tree: Tree
) -> Mapping[str, tuple[str, ...]]:
    """Captions from metadata tables, by full name. A row without its image is listed as
    excluded.
    """
    found: dict[str, tuple[str, ...]] = {}
    names = {entry.name for entry in listing.entries}
    tables = _given_table(place, folders) if place.table is not None else folders.tables()
    stems: dict[str, str] = {}
    if place.table is not None:
        stems = {
            split_suffix(name)[0]: name for name in names if split_suffix(name)[1] in IMAGE_SUFFIXES
        }
    for folder, entry in tables.items():
        where = str(place.path / entry.name) if place.table is None else str(place.table)
        rows = (
            read_kohya_table(entry, where)
            if entry.name.lower().endswith(".json")
            else read_table(entry, where)
        )
        for row_name, captions in rows.items():
            name = f"{folder}/{row_name}" if folder else row_name
            if name not in names:
                # sd-scripts' keys may be full paths, and may lack the suffix.
                name = name.removeprefix(f"{place.path.as_posix()}/")
                name = name if name in names else stems.get(name, name)
            if name in names:
                found[name] = captions
            else:
                reason = f"listed in {printable(entry.name)}, but the file is missing"
                tree.excluded.append(Excluded(name=printable(name), reason=reason))
    listed = sum(split_suffix(name)[1] in IMAGE_SUFFIXES for name in names)
    if tables and place.table is None and len(found) < listed:
        absent = listed - len(found)
        tree.findings.append(
            Finding(f"{printable(str(place.path))}: {absent} images are in no metadata table")
        )
    return found


def _given_table(place: Place, folders: _Folders) -> dict[str, Entry]:
    assert place.table is not None
    if place.table.parent == place.path:
        stem, suffix = split_suffix(place.table.name)
        if inside := folders.find("", stem, suffix):
            return {"": inside}
    try:
        status = place.table.stat()
    except OSError as error:
        raise DataError(
            f"{printable(str(place.table))}: cannot be read ({error.strerror})"
        ) from error
    return {"": Entry(place.table.name, str(place.table), status.st_size, status.st_mtime_ns)}


def _meaning(folder: str, root_name: str, place: Place, projects: frozenset[str]) -> Meaning:
    if not place.reads_folder_names:
        return Meaning(place.role, place.repeats)
    parts = folder.split("/") if folder else []
    role = place.role
    for depth in range(len(parts) + 1):
        if "/".join(parts[:depth]) in projects:
            below = parts[depth].lower() if depth < len(parts) else ""
            if below == _PRIOR_FOLDER:
                role = "prior"
            elif below != _IMAGE_FOLDER:
                return Meaning(
                    role,
                    1,
                    "",
                    f"beside the {_IMAGE_FOLDER}/ folder, which holds the training images",
                )
    for part in reversed([root_name, *parts]):
        if found := _KOHYA_FOLDER.fullmatch(part):
            refusal = "" if int(found[1]) else f"its folder {printable(part)} says 0 repeats"
            return Meaning(role, place.repeats * int(found[1]), found[2], refusal)
    return Meaning(role, place.repeats)


def record_of(
    entry: Entry,
    captions: tuple[str, ...],
    place: Place,
    *,
    meaning: Meaning | None = None,
    mask: str = "",
    attention: str = "",
) -> Record:
    """The record of one image, still without size and content."""
    meaning = meaning or Meaning(place.role, place.repeats)
    prior = meaning.role == "prior"
    trigger, class_noun = "" if prior else place.trigger, place.class_noun
    # A template for the subject does not describe class images that lie beside it.
    template = "" if prior and place.role == "train" else place.template
    if not captions and place.fallback:
        captions = (place.fallback,)
    elif not captions and meaning.words and template:
        first, _, rest = meaning.words.partition(" ")
        trigger = trigger or ("" if prior else first)
        class_noun = class_noun or (meaning.words if prior else rest)
    elif not captions and meaning.words and (not trigger or has_trigger(meaning.words, trigger)):
        captions = (meaning.words,)
    if place.caption_prefix or place.caption_suffix:
        captions = tuple(
            " ".join(f"{place.caption_prefix} {c} {place.caption_suffix}".split()) for c in captions
        )
    return Record(
        locator=entry.locator,
        name=printable(entry.name),
        role=meaning.role,
        repeats=meaning.repeats,
        width=0,
        height=0,
        content="",
        captions=captions,
        trigger=trigger,
        class_noun=class_noun,
        template=template,
        mask=mask,
        attention=attention,
        keep_tokens=place.keep_tokens,
        shuffle=place.shuffle,
    )

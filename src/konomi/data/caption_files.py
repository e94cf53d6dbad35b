"""Which file holds an image's caption, and which caption files no image reads.

Trainers and taggers put captions in several places. For `photo/cat.png` these are looked at, in
this order: `cat.txt` and `cat.caption` beside it (also `.text`, `.tags`); `cat.png.txt`; a folder
`captions` in the image's folder, or in place of one of the folders it lies in (`images/cat.png`
and `captions/cat.txt`); the same names in other letter case.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from konomi.data.captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, captions_in
from konomi.data.containers import Entry, Listing, read_bytes, split_suffix
from konomi.data.encodings import UNICODE, decoded
from konomi.data.manifest import Finding, first_names, listing_names
from konomi.data.metadata import METADATA_NAMES
from konomi.errors import DataError, printable

# Not `labels`, where detectors keep numbers.
CAPTION_FOLDERS = ("captions", "caption", "txt", "text", "texts", "tags", "prompts")
"""Folders, in small letters, that hold captions for images elsewhere."""
_TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_OTHER_KINDS = (
    ".mp4",
    ".webm",
    ".mov",
    ".zip",
    ".tar",
    ".7z",
    ".rar",
    ".gz",
    ".pdf",
    ".mp3",
    ".wav",
)
_ABOUT_THE_FOLDER = (
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "credits",
    "requirements",
)
_OWN_FILES = frozenset(("manifest.jsonl", "log.jsonl", "recipe.toml", *METADATA_NAMES))


class CaptionFiles:
    """The caption files of one listing, and what was noticed while they were read."""

    def __init__(
        self,
        listing: Listing,
        suffixes: Sequence[str] = CAPTION_SUFFIXES,
        *,
        lines: Literal["joined", "alternatives"] = "joined",
    ) -> None:
        self._suffixes = tuple(suffixes)
        self._lines = lines
        self._entries: dict[str, Entry] = {}
        self._in_small_letters: dict[str, Entry] = {}
        self._folders: dict[str, None] = {}
        self._read: set[str] = set()
        self._others: list[Entry] = []
        self._several_lines: list[str] = []
        self._encodings: dict[str, list[str]] = {}
        for entry in listing.entries:
            stem, suffix = split_suffix(entry.name)
            if suffix in self._suffixes:
                self._entries[stem + suffix] = entry
                self._in_small_letters.setdefault((stem + suffix).lower(), entry)
                folder = entry.name.rpartition("/")[0]
                if folder.rpartition("/")[2].lower() in CAPTION_FOLDERS:
                    self._folders[folder] = None
            elif suffix in CAPTION_SUFFIXES or suffix in _TABLE_SUFFIXES or suffix in _OTHER_KINDS:
                self._others.append(entry)

    def read(self, name: str) -> tuple[str, ...]:
        """The captions of an image; none where no file has any.

        Raises:
            DataError: a file larger than a caption can be, or of unknown encoding.
        """
        if not self._entries:
            return ()
        paths = list(dict.fromkeys(self._places(name)))
        for known, wanted in (
            (self._entries, paths),
            (self._in_small_letters, [path.lower() for path in paths]),
        ):
            for path in wanted:
                entry = known.get(path)
                if entry is not None and (captions := self._captions_of(entry)):
                    return captions
        return ()

    def _captions_of(self, entry: Entry) -> tuple[str, ...]:
        again = entry.name in self._read
        self._read.add(entry.name)
        if entry.size > MAX_CAPTION_BYTES:
            raise DataError(
                f"{printable(entry.locator)}: {entry.size} bytes, too large for a caption. Is it "
                "the right file?"
            )
        found = decoded(read_bytes(entry.locator, limit=MAX_CAPTION_BYTES), entry.locator)
        lines = captions_in(found.text)
        if not again and len(lines) > 1:
            self._several_lines.append(entry.name)
        if not again and found.encoding != UNICODE:
            self._encodings.setdefault(found.encoding, []).append(entry.name)
        return lines if self._lines == "alternatives" else tuple(filter(None, [" ".join(lines)]))

    def findings(
        self, shown: str, images: Iterable[str], *, tables: Sequence[str] = ()
    ) -> list[Finding]:
        """What is to be said of the files that hold text: how they were read, and which nobody
        reads.

        Args:
            shown: the place, as messages name it.
            images: all images of the listing, also those left out.
            tables: metadata tables that are read.
        """
        found = []
        for encoding, names in self._encodings.items():
            captions = "1 caption is" if len(names) == 1 else f"{len(names)} captions are"
            found.append(
                listing_names(f"{shown}: {captions} read as {encoding}: " + "{names}", names)
            )
        if self._several_lines:
            found.append(self._about_lines(shown))
        found += self._unread(shown, images, tables)
        return found + self._others_unread(shown, tables)

    def _about_lines(self, shown: str) -> Finding:
        files = (
            "1 caption file has"
            if len(self._several_lines) == 1
            else f"{len(self._several_lines)} caption files have"
        )
        if self._lines == "joined":
            how = (
                "which are one caption; if each line is one of its own, set data.captions.lines "
                '= "alternatives"'
            )
        else:
            how = "of which one is taken each time the image is seen (data.captions.lines)"
        return listing_names(
            f"{shown}: {files} several lines, {how}: " + "{names}", self._several_lines
        )

    def _unread(self, shown: str, images: Iterable[str], tables: Sequence[str]) -> list[Finding]:
        left = {
            path: entry.name
            for path, entry in self._entries.items()
            if entry.name not in self._read and not _is_about_the_folder(entry.name)
        }
        if not left:
            return []
        owned = {path.lower() for image in images for path in self._places(image)}
        strays = [name for path, name in left.items() if path.lower() not in owned]
        second = [name for path, name in left.items() if path.lower() in owned]
        found = []
        if strays:
            files = (
                "1 caption file belongs"
                if len(strays) == 1
                else f"{len(strays)} caption files belong"
            )
            rule = "A caption has the name of its image: x.png and x.txt."
            message = (
                f"{shown}: {files} to no image and is not read: {{names}}. {rule}"
                if len(strays) == 1
                else f"{shown}: {files} to no image and are not read: {{names}}. {rule}"
            )
            found.append(listing_names(message, strays))
        if second:
            files = "1 caption file is" if len(second) == 1 else f"{len(second)} caption files are"
            source = first_names(tables) if tables else "another file"
            found.append(
                listing_names(
                    f"{shown}: {files} not read, because the caption comes from {source}: "
                    + "{names}",
                    second,
                )
            )
        return found

    def _others_unread(self, shown: str, tables: Sequence[str]) -> list[Finding]:
        known = frozenset(tables)
        others = [
            entry.name
            for entry in self._others
            if entry.name not in known
            and entry.name.rpartition("/")[2].lower() not in _OWN_FILES
            and not _is_about_the_folder(entry.name)
        ]
        found = []
        for suffix in dict.fromkeys(split_suffix(name)[1] for name in others):
            names = [name for name in others if split_suffix(name)[1] == suffix]
            message = (
                f"{shown}: {len(names)} {suffix} file{'s are' if len(names) > 1 else ' is'} not "
                "read: "
            ) + "{names}."
            found.append(listing_names(message + self._advice(suffix), names))
        return found

    def _advice(self, suffix: str) -> str:
        if suffix in CAPTION_SUFFIXES:
            return f" caption_extension says that captions end in {' or '.join(self._suffixes)}."
        if suffix in (".json", ".jsonl", ".csv"):
            return (
                " Captions are read from .txt files, from metadata.jsonl, or from a table that "
                "is given as the source."
            )
        return ""

    def _places(self, name: str) -> Iterator[str]:
        stem, _ = split_suffix(name)
        for path in (stem, name):
            for suffix in self._suffixes:
                yield path + suffix
        if not self._folders:
            return
        *folders, base = name.split("/")
        bases = (split_suffix(base)[0], base)
        for captions in self._folders:
            *above, _ = captions.split("/")
            # In the image's folder, or in place of one of the folders it lies in.
            inside = above == folders
            instead = len(above) < len(folders) and above == folders[: len(above)]
            if inside or instead:
                rest = [] if inside else folders[len(above) + 1 :]
                for kept in bases:
                    for suffix in self._suffixes:
                        yield "/".join([captions, *rest, kept]) + suffix


def _is_about_the_folder(name: str) -> bool:
    return name.rpartition("/")[2].lower().startswith(_ABOUT_THE_FOLDER)

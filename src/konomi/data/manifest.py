"""The list of images a run works on: `manifest.jsonl`, one object a line, in a fixed order."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from json.encoder import encode_basestring
from operator import attrgetter
from pathlib import Path
from typing import Literal

from konomi.config.parse import parse_json
from konomi.config.problems import adapter_of
from konomi.errors import DataError, printable
from konomi.hardware.garbage_collection import gc_paused
from konomi.storage.atomic import write_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image, its captions and where it came from."""

    locator: str
    """Where its bytes are: a file path, or `CONTAINER::MEMBER` for zip and tar."""
    name: str
    """Short name for messages: path relative to its source."""
    role: Literal["train", "prior"]
    repeats: int
    """Times per epoch (source repeats times folder repeats)."""
    width: int
    """Pixels, after EXIF turning."""
    height: int
    content: str
    """Hex digest of the file's bytes; keys the latent cache."""
    captions: tuple[str, ...] = ()
    """Captions as read; one is picked each time when there are several. Empty: none was found."""
    trigger: str = ""
    class_noun: str = ""
    template: str = ""
    mask: str = ""
    """Locator of a separate mask image, or empty."""
    attention: str = ""
    """Locator of a separate image that says where to look more or less closely (DreamArtist), or
    empty."""
    keep_tokens: int | None = None
    """Overrides `data.captions.keep_tokens` (dataset TOML of sd-scripts)."""
    shuffle: bool | None = None
    """Overrides `data.captions.shuffle`."""
    drawn: bool = False
    """The file says that konomi drew it."""
    trigger_first: bool = False
    """Trigger and class come in front even of a caption that has them: further back the text
    encoder would not see them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """An image that will not be trained, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data that stops nothing and should be known before a run: missing
    captions, a trigger in no caption, files that nobody reads. `check` shows it, `train` says it.
    """

    message: str
    """One line: where, what, how many, the first names, and the way out."""
    names: tuple[str, ...] = ()
    """All files it is about, where it is about files."""


MAX_NAMES = 10
"""Names that the line of a finding holds."""


def listing_names(message: str, names: Sequence[str], *, most: int = MAX_NAMES) -> Finding:
    """A finding about files: `{names}` in the message becomes the first of them."""
    return Finding(
        message.replace("{names}", first_names(names, most=most)),
        tuple(printable(name) for name in names),
    )


def first_names(names: Sequence[str], *, most: int = MAX_NAMES) -> str:
    """The first names and how many follow, fit for one line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


@dataclass(frozen=True, slots=True)
class Manifest:
    """All images in a fixed order (by source, then by name), and those left out."""

    records: tuple[Record, ...]
    excluded: tuple[Excluded, ...] = ()
    findings: tuple[Finding, ...] = ()
    cache_key: str = field(default="", compare=False)
    """Names the scan that is remembered (see `konomi.data.scan_cache`), where it is one."""

    @property
    def problems(self) -> tuple[str, ...]:
        """The findings' lines."""
        return tuple(finding.message for finding in self.findings)


@gc_paused()
def write_manifest(manifest: Manifest, path: Path) -> None:
    """One object a line: the images, then those left out. Raises RunError for the disk."""
    with write_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for kind, entries in ((Record, manifest.records), (Excluded, manifest.excluded)):
            names = [item.name for item in fields(kind)]
            values_of = attrgetter(*names)
            # Most fields are those of the image before: half the time of encoding each, at 100,000
            # images a start.
            before: list[object] = [object()] * len(names)
            texts = [""] * len(names)
            for entry in entries:
                for place, value in enumerate(values_of(entry)):
                    if value is not before[place]:
                        before[place] = value
                        texts[place] = f'"{names[place]}": {_as_json(value)}'
                file.write(f"{{{', '.join(texts)}}}\n")


def read_manifest(path: Path) -> tuple[Record, ...]:
    """The images of a file that `write_manifest` wrote, without those left out. Raises DataError
    where it is none.
    """
    reader = adapter_of(Record)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [parse_json(line) for line in lines]
        return tuple(reader.validate_python(entry) for entry in entries if "reason" not in entry)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is no list of images that konomi wrote.") from error


def _as_json(value: object) -> str:
    """A field as the json module writes it."""
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_json, value))}]"
    return json.dumps(value)

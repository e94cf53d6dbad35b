"""The list of images a run works on: `manifest.jsonl`, one object a line, in a fixed order."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

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
    """Locator of a separate image that says where to look more or less closely (DreamArtist), or empty."""
    keep_tokens: int | None = None
    """Overrides `data.captions.keep_tokens` (dataset TOML of sd-scripts)."""
    shuffle: bool | None = None
    """Overrides `data.captions.shuffle`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """An image that will not be trained, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All images in a fixed order (by source, then by name), and those left out."""

    records: tuple[Record, ...]
    excluded: tuple[Excluded, ...] = ()
    problems: tuple[str, ...] = ()
    """What is not fatal but worth a word: missing captions, a trigger in no caption, duplicates."""


def write_manifest(manifest: Manifest, path: Path) -> None:
    """One object a line: the images, then those left out. Raises RunError for the disk."""
    with write_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        entries: tuple[Record | Excluded, ...] = (*manifest.records, *manifest.excluded)
        for entry in entries:
            file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")

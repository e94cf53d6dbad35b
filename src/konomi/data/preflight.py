"""What is wrong, or odd, about a source of images: said before any model loads, with the way out."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from konomi.data.captions import file_words, has_trigger
from konomi.data.containers import Listing
from konomi.data.manifest import Excluded, Record
from konomi.data.tree import IMAGE_SUFFIXES, Candidate, Place, Tree, split_suffix
from konomi.errors import DataError, printable

MAX_LISTED = 10


def missing_path(path: Path) -> DataError:
    """The path does not exist; the nearest name that does."""
    shown = printable(str(path))
    parent = path.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        names = sorted(item.name for item in parent.iterdir())
    except OSError:
        names = []
    nearest = difflib.get_close_matches(path.name, names, n=1)
    if nearest and parent == path.parent:
        return DataError(f"{shown}: no such file or folder. Did you mean {printable(str(parent / nearest[0]))}?")
    return DataError(f"{shown}: no such file or folder. {printable(str(parent))} is the part of it that exists.")


def nothing_found(place: Place, listing: Listing, tree: Tree) -> DataError:
    """Why a place gives no image, as specifically as can be told."""
    shown = printable(str(place.path))
    if tree.excluded:
        shown_reasons = "; ".join(f"{bad.name}: {bad.reason}" for bad in tree.excluded[:3])
        return DataError(f"{shown}: none of its {len(tree.excluded)} files can be trained ({shown_reasons})")
    deeper = [entry for entry in listing.entries if split_suffix(entry.name)[1] in IMAGE_SUFFIXES]
    if deeper:
        folder = deeper[0].name.rpartition("/")[0]
        return DataError(
            f"{shown}: no images in the folder itself; they lie one level lower, as in {printable(folder)}/. "
            "Make a [[datasets.subsets]] for each such folder."
        )
    suffixes = {split_suffix(entry.name)[1] for entry in listing.entries}
    for suffix in (".zip", ".tar"):
        if suffix in suffixes:
            name = next(entry.name for entry in listing.entries if split_suffix(entry.name)[1] == suffix)
            return DataError(f"{shown}: no images, but {suffix} files. Give the path of one: {shown}/{printable(name)}")
    above = place.path.parent
    if _holds_images(above):
        return DataError(f"{shown}: no images here; they lie one folder higher. Give {printable(str(above))}")
    if listing.entries:
        return DataError(f"{shown}: {len(listing.entries)} files, none of them an image. Is it the right folder?")
    return DataError(f"{shown}: empty. Put images there (PNG, JPEG, WebP, ...), or give the folder that holds them.")


def _holds_images(folder: Path) -> bool:
    try:
        return any(split_suffix(item.name)[1] in IMAGE_SUFFIXES for item in folder.iterdir())
    except OSError:
        return False


def caption_problems(place: Place, candidates: Sequence[Candidate]) -> list[str]:
    """Captions that are missing, and triggers that no caption holds."""
    shown = printable(str(place.path))
    training = [candidate for candidate in candidates if candidate.record.role == "train"]
    bare = [candidate for candidate in training if not candidate.captioned]
    problems = []
    wordless = [candidate for candidate in bare if not _has_words(candidate.record)]
    if wordless:
        problems.append(
            f"{shown}: {len(wordless)} of {len(training)} images have no caption and would train on empty text: "
            f"{_names(c.record.name for c in wordless)}. Put a .txt beside each, or set trigger and class_noun."
        )
    elif bare and len(bare) < len(training):
        problems.append(
            f"{shown}: {len(bare)} of {len(training)} images have no caption file and use the trigger, class, folder "
            f"name or template instead: {_names(c.record.name for c in bare)}"
        )
    return problems + _trigger_problems(shown, place, [c for c in training if c.captioned])


def _has_words(record: Record) -> bool:
    if record.captions or record.trigger or record.class_noun:
        return True
    # A template of placeholders alone says nothing when there is nothing to put in.
    words = record.template.replace("[name]", "").replace("[filewords]", file_words(record.name))
    return bool(words.strip())


def _trigger_problems(shown: str, place: Place, captioned: list[Candidate]) -> list[str]:
    if not captioned:
        return []
    if place.trigger:
        if any(has_trigger(caption, place.trigger) for c in captioned for caption in c.record.captions):
            return []
        return [
            f"{shown}: the trigger {place.trigger!r} is in none of the {len(captioned)} captions; "
            "it is put in front of each"
        ]
    problems = []
    for words in dict.fromkeys(c.folder_words for c in captioned if c.folder_words):
        trigger = words.split()[0]
        inside = [c for c in captioned if c.folder_words == words]
        if not any(has_trigger(caption, trigger) for c in inside for caption in c.record.captions):
            problems.append(
                f"{shown}: the folder says {words!r}, but {trigger!r} is in none of its {len(inside)} captions and "
                f'would not be learned. Add it to them, or set trigger = "{trigger}" for this source.'
            )
    return problems


def level_problems(place: Place, candidates: Sequence[Candidate]) -> list[str]:
    """A folder of folders given as one subject: probably one level too high."""
    if not (place.trigger and place.role == "train" and place.reads_folder_names):
        return []
    plain = [c.entry.name for c in candidates if not c.folder_words]
    folders = list(dict.fromkeys(name.partition("/")[0] for name in plain if "/" in name))
    if len(folders) < 2 or any("/" not in name for name in plain):
        return []
    shown = printable(str(place.path))
    return [
        f"{shown}: the images come from {len(folders)} folders ({_names(folders)}), all under the one trigger "
        f"{place.trigger!r}. If it names a single subject, give that folder: {shown}/{printable(folders[0])}"
    ]


def duplicate_problems(records: Iterable[Record]) -> list[str]:
    """Files with the same bytes."""
    first: dict[str, str] = {}
    pairs = []
    for record in records:
        earlier = first.setdefault(record.content, record.name)
        if earlier is not record.name:
            pairs.append(f"{earlier} = {record.name}")
    if not pairs:
        return []
    return [f"{len(pairs)} images are byte-identical copies of others; each is trained on its own: {_names(pairs)}"]


def all_excluded(excluded: Sequence[Excluded]) -> DataError:
    """Files were there, but not one can be read."""
    reasons = "; ".join(f"{bad.name}: {bad.reason}" for bad in excluded[:MAX_LISTED])
    return DataError(f"no image can be read. {reasons}")


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return ", ".join(printable(name) for name in listed[:MAX_LISTED]) + more

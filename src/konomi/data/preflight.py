"""What is wrong, or odd, about a source of images: said before any model loads, with the way
out.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from konomi.data.caption_files import CAPTION_FOLDERS
from konomi.data.captions import file_words, has_trigger
from konomi.data.containers import Listing, split_suffix
from konomi.data.manifest import Excluded, Finding, Record, first_names, listing_names
from konomi.data.tree import IMAGE_SUFFIXES, Candidate, Place, Tree
from konomi.errors import DataError, printable

MAX_LISTED = 10
_MANY_REPEATS = re.compile(r"([0-9]{4,})_.*\S", re.DOTALL)
# What people call the folder of images that show the class (regularisation images).
CLASS_FOLDERS = (
    "reg",
    "regs",
    "regularization",
    "regularisation",
    "reg_images",
    "class",
    "class_images",
    "classimages",
)
MAX_LINES = 12
"""Notes on the data that `train` repeats; a hundred subsets can have hundreds."""


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
        return DataError(
            f"{shown}: no such file or folder. Did you mean {printable(str(parent / nearest[0]))}?"
        )
    return DataError(
        f"{shown}: no such file or folder. {printable(str(parent))} is the part of it that exists."
    )


def nothing_found(place: Place, listing: Listing, tree: Tree) -> DataError:
    """Why a place gives no image, as specifically as can be told."""
    shown = printable(str(place.path))
    if tree.excluded:
        shown_reasons = "; ".join(f"{bad.name}: {bad.reason}" for bad in tree.excluded[:3])
        return DataError(
            f"{shown}: none of its {len(tree.excluded)} files can be trained ({shown_reasons})"
        )
    deeper = [entry for entry in listing.entries if split_suffix(entry.name)[1] in IMAGE_SUFFIXES]
    if deeper:
        folder = deeper[0].name.rpartition("/")[0]
        return DataError(
            f"{shown}: no images in the folder itself; they lie one level lower, as in "
            f"{printable(folder)}/. Make a [[datasets.subsets]] for each such folder."
        )
    suffixes = {split_suffix(entry.name)[1] for entry in listing.entries}
    for suffix in (".zip", ".tar"):
        if suffix in suffixes:
            name = next(
                entry.name for entry in listing.entries if split_suffix(entry.name)[1] == suffix
            )
            return DataError(
                f"{shown}: no images, but {suffix} files. Give the path of one: "
                f"{shown}/{printable(name)}"
            )
    above = place.path.parent
    if _holds_images(above):
        return DataError(
            f"{shown}: no images here; they lie one folder higher. Give {printable(str(above))}"
        )
    if listing.entries:
        return DataError(
            f"{shown}: {len(listing.entries)} files, none of them an image. Is it the right folder?"
        )
    return DataError(
        f"{shown}: empty. Put images there (PNG, JPEG, WebP, ...), or give the folder that holds "
        "them."
    )


def _holds_images(folder: Path) -> bool:
    try:
        return any(split_suffix(item.name)[1] in IMAGE_SUFFIXES for item in folder.iterdir())
    except OSError:
        return False


def caption_findings(place: Place, candidates: Sequence[Candidate]) -> list[Finding]:
    """Captions that are missing, and triggers that no caption holds."""
    shown = printable(str(place.path))
    training = [candidate for candidate in candidates if candidate.record.role == "train"]
    bare = [candidate for candidate in training if not candidate.captioned]
    found = []
    wordless = [candidate.record.name for candidate in bare if not _has_words(candidate.record)]
    if wordless:
        found.append(
            listing_names(
                f"{shown}: {len(wordless)} of {len(training)} images have no caption and would "
                "train on empty text: "
                "{names}. Put a .txt beside each, or set trigger and class_noun.",
                wordless,
            )
        )
    elif bare and len(bare) < len(training):
        found.append(
            listing_names(
                f"{shown}: {len(bare)} of {len(training)} images have no caption file and use the "
                "trigger, class, "
                "folder name or template instead: {names}",
                [candidate.record.name for candidate in bare],
            )
        )
    return found + _trigger_findings(shown, place, [c for c in training if c.captioned])


def _has_words(record: Record) -> bool:
    if record.captions or record.trigger or record.class_noun:
        return True
    # A template of placeholders alone says nothing when there is nothing to put in.
    words = record.template.replace("[name]", "").replace("[filewords]", file_words(record.name))
    return bool(words.strip())


def _trigger_findings(shown: str, place: Place, captioned: list[Candidate]) -> list[Finding]:
    if not captioned:
        return []
    if place.trigger:
        if any(
            has_trigger(caption, place.trigger) for c in captioned for caption in c.record.captions
        ):
            return []
        return [
            Finding(
                f"{shown}: the trigger {place.trigger!r} is in none of the {len(captioned)} "
                "captions; it is put in front of each"
            )
        ]
    found = []
    for words in dict.fromkeys(c.folder_words for c in captioned if c.folder_words):
        trigger = words.split()[0]
        inside = [c for c in captioned if c.folder_words == words]
        if not any(has_trigger(caption, trigger) for c in inside for caption in c.record.captions):
            found.append(
                Finding(
                    f"{shown}: the folder says {words!r}, but {trigger!r} is in none of its "
                    f"{len(inside)} captions and "
                    f'would not be learned. Add it to them, or set trigger = "{trigger}" for this '
                    "source."
                )
            )
    return found


def level_findings(place: Place, candidates: Sequence[Candidate]) -> list[Finding]:
    """A folder of folders given as one subject: probably one level too high."""
    if not (place.trigger and place.role == "train" and place.reads_folder_names):
        return []
    plain = [c.entry.name for c in candidates if not c.folder_words]
    folders = list(dict.fromkeys(name.partition("/")[0] for name in plain if "/" in name))
    if len(folders) < 2 or any("/" not in name for name in plain):
        return []
    shown = printable(str(place.path))
    return [
        Finding(
            f"{shown}: the images come from {len(folders)} folders ({first_names(folders)}), all "
            f"under the one trigger {place.trigger!r}. If it names a single subject, give that "
            f"folder: {shown}/{printable(folders[0])}"
        )
    ]


def folder_findings(place: Place, candidates: Sequence[Candidate]) -> list[Finding]:
    """Folder names that mean something elsewhere and nothing here, and captions that lie
    next door.
    """
    shown = printable(str(place.path))
    training = [candidate for candidate in candidates if candidate.record.role == "train"]
    found = _sibling_folders(shown, place, training)
    if not place.reads_folder_names:
        return found
    folders = dict.fromkeys(part for c in training for part in c.entry.name.split("/")[:-1])
    root = place.path.stem if place.path.is_file() else place.path.name
    for folder in (root, *folders):
        if (number := _MANY_REPEATS.match(folder)) and not 1800 <= int(number[1]) <= 2199:
            found.append(
                Finding(
                    f"{shown}: the folder {printable(folder)} counts as a name and not as "
                    f"{number[1]} repeats; four digits and more do not. If repeats are meant, set "
                    f"repeats = {number[1]} for this source, or name the folder "
                    f"{number[1][:2]}{folder[len(number[1]) :]} and train more epochs."
                )
            )
    for folder in folders:
        if folder.lower() in CLASS_FOLDERS:
            inside = [c.record.name for c in training if folder in c.entry.name.split("/")[:-1]]
            found.append(
                listing_names(
                    f"{shown}: the {len(inside)} images in {printable(folder)}/ are trained like "
                    "the others. If they "
                    "show the class and not the subject, move the folder out and give it with "
                    "--prior: {names}",
                    inside,
                    most=3,
                )
            )
    return found


def _sibling_folders(shown: str, place: Place, training: Sequence[Candidate]) -> list[Finding]:
    """Folders beside the source that its images may be meant to go with."""
    if not place.path.is_dir():
        return []
    try:
        neighbours = [item for item in place.path.resolve().parent.iterdir() if item.is_dir()]
        beside = {
            item.name.lower(): item for item in neighbours if item.name != place.path.resolve().name
        }
        found = []
        stems = {
            split_suffix(c.entry.name.rpartition("/")[2])[0] for c in training if not c.captioned
        }
        for name in CAPTION_FOLDERS if stems else ():
            if name in beside and any(
                split_suffix(item.name)[0] in stems for item in beside[name].iterdir()
            ):
                found.append(
                    Finding(
                        f"{shown}: the captions are in the neighbouring folder "
                        f"{printable(str(beside[name]))} and are not read. Give the folder that "
                        f"holds both: {printable(str(beside[name].parent))}"
                    )
                )
        plain = (
            place.reads_folder_names and place.role == "train" and place.path.name.lower() != "img"
        )
        for name in CLASS_FOLDERS if plain else ():
            if name in beside and _holds_images(beside[name]):
                found.append(
                    Finding(
                        f"{shown}: {printable(str(beside[name]))} lies beside it and is not used. "
                        "If it holds images of the class, give it with --prior."
                    )
                )
    except OSError:
        return []
    return found


def origin_findings(records: Iterable[Record]) -> list[Finding]:
    """Training images that konomi itself has drawn."""
    own = [record.name for record in records if record.drawn and record.role == "train"]
    if not own:
        return []
    images = "1 image was" if len(own) == 1 else f"{len(own)} images were"
    return [
        listing_names(
            f"{images} drawn by konomi, as the PNG text says, a preview or a sheet perhaps: what "
            "learns from a model's "
            "pictures learns its faults. Remove them if that is not meant: {names}",
            own,
        )
    ]


def duplicate_findings(records: Iterable[Record]) -> list[Finding]:
    """Files with the same bytes."""
    first: dict[str, str] = {}
    pairs = []
    for record in records:
        earlier = first.setdefault(record.content, record.name)
        if earlier is not record.name:
            pairs.append(f"{earlier} = {record.name}")
    if not pairs:
        return []
    message = (
        f"{len(pairs)} images are byte-identical copies of others; each is trained on its own: "
        + "{names}"
    )
    return [listing_names(message, pairs)]


def summary_lines(findings: Sequence[Finding], excluded: Sequence[Excluded]) -> list[str]:
    """What `train` says of its data: a line for each finding, as far as a person reads, and one
    for all files left out (`check` has one for each).
    """
    lines = [finding.message for finding in findings[:MAX_LINES]]
    if excluded:
        reasons = [f"{bad.name} ({bad.reason})" for bad in excluded]
        files = "1 file is" if len(excluded) == 1 else f"{len(excluded)} files are"
        lines.insert(
            0,
            f"{files} left out: {first_names(reasons, most=3)}. `konomi check` lists all of them.",
        )
    if len(findings) > MAX_LINES:
        lines.append(
            f"and {len(findings) - MAX_LINES} more notes on the data; `konomi check` shows them "
            "all."
        )
    return lines


def all_excluded(excluded: Sequence[Excluded]) -> DataError:
    """Files were there, but not one can be read."""
    reasons = "; ".join(f"{bad.name}: {bad.reason}" for bad in excluded[:MAX_LISTED])
    return DataError(f"no image can be read. {reasons}")

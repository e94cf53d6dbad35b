"""Make konomi/builtin/words from unpacked packages: python tools/word_lists.py FOLDER (see the
README there).
"""

import hashlib
import re
import sys
from pathlib import Path

WORDS = Path(__file__).parents[1] / "src" / "konomi" / "builtin" / "words"
COMMON_SURNAMES = 3000
"""Rarer ones are as good as no word at all."""
# fmt: off
OWN = (
    "kkk", "nazi", "isis", "nsfw", "chink", "gypsy", "pedo", "incel", "rapey", "hitle", "hamas",
    "nigra", "negr", "tranny", "beaner", "wetback", "golliwog",
)
# fmt: on
"""Offensive words that the package's list does not have."""


def main(folder: Path) -> None:
    """Write both lists."""
    dictionary = (folder / "symspellpy" / "frequency_dictionary_en_82_765.txt").read_text(
        encoding="utf-8-sig"
    )
    in_use = {line.split()[0] for line in dictionary.splitlines()}
    for file in (folder / "names-0.3.0" / "names").glob("dist.*"):
        lines = file.read_text(encoding="ascii").splitlines()
        in_use |= {
            line.split()[0]
            for line in (lines[:COMMON_SURNAMES] if file.name == "dist.all.last" else lines)
        }
    write("in_use.txt", {word.lower() for word in in_use if re.fullmatch("[a-zA-Z]{3,5}", word)})
    listed = (
        (folder / "better_profanity" / "profanity_wordlist.txt")
        .read_text(encoding="utf-8")
        .lower()
        .split("\n")
    )
    offensive = {word.strip() for word in listed if re.fullmatch("[a-z]{3,}", word.strip())} | set(
        OWN
    )
    write("offensive.txt", {hashlib.sha256(word.encode()).hexdigest()[:16] for word in offensive})


def write(name: str, words: set[str]) -> None:
    """One a line, sorted."""
    (WORDS / name).write_text("\n".join(sorted(words)) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

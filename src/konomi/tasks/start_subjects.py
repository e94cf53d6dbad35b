"""What a network of starts learns from: pictures, and the embedding that they are pictures of.

Shapes: E numbers of an embedding (vectors x widths of all text encoders).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from konomi.data.images import read_image
from konomi.data.tree import IMAGE_SUFFIXES
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.methods.textual_inversion import TEMPLATES
from konomi.models.base import BaseModel
from konomi.models.start_network import joined
from konomi.storage.atomic import write_file
from konomi.tasks.prior import NOUNS
from konomi.tasks.word_lists import is_offensive
from konomi.training.events import Prepared, Warned

DRAWN = TEMPLATES["object"][:8]
"""Pictures of a word are drawn for these in turn: eight, as in LEAP."""
LARGEST = 256
"""Side of the kept pictures, in pixels: no network sees more."""
TOGETHER = 4
_EMBEDDINGS = (".safetensors", ".pt", ".bin")
_WORD = re.compile(r"[a-z]{4,}</w>")


@dataclass(frozen=True, slots=True)
class StartSubject:
    """Some pictures and what they mean."""

    name: str
    """Subjects of one name are never on both sides where some are kept aside."""
    pictures: tuple[Path, ...]
    embedding_E: Tensor
    vectors: int

    def images(self, count: int) -> list[Image.Image]:
        """The first ones. Raises DataError for one that cannot be read."""
        return [Image.fromarray(read_image(str(p)).pixels) for p in self.pictures[:count]]


def words_of(base: BaseModel, count: int) -> list[str]:
    """Words that are one token to each tokenizer of the base: names of things first, then the most
    frequent entries of its vocabulary."""
    narrow = base.width < base.published_width
    names = NOUNS / ("tiny.txt" if narrow else "everyday.txt")
    tables = list(base.vocabularies().values())
    entries = sorted(
        (one for one in tables[0] if _WORD.fullmatch(one) and all(one in t for t in tables)),
        key=tables[0].__getitem__,
    )
    listed = names.read_text(encoding="utf-8").split("\n")
    found: list[str] = []
    for word in dict.fromkeys([*listed, *(one.removesuffix("</w>") for one in entries)]):
        if len(found) == count:
            break
        if word and not is_offensive(word) and _is_one_token(base, word):
            found.append(word)
    return found


def _is_one_token(base: BaseModel, word: str) -> bool:
    return all(len(pieces) == 1 for pieces in base.tokens(word).values())


def subject_of_word(base: BaseModel, word: str, pictures: Sequence[Path]) -> StartSubject:
    """A word of the vocabulary, and pictures of it that are there or will be."""
    return StartSubject(word, tuple(pictures), joined(dict(base.token_vectors(word))), 1)


def draw_words(
    base: BaseModel, words: Sequence[str], folder: Path, pictures: int, seed: int
) -> Iterator[Prepared]:
    """Draw what is missing, `folder/WORD/NN.png`. Each picture depends on its word, its number and
    the seed alone, so that a command that was stopped goes on with the same.

    Raises ModelError where a picture cannot be drawn, RunError for the disk.
    """
    total = len(words) * pictures
    yield Prepared("pictures of words", 0, total)
    for number, word in enumerate(words):
        paths = word_pictures(folder, word, pictures)
        for start in range(0, pictures, TOGETHER):
            some = range(start, min(start + TOGETHER, pictures))
            # Always as a whole: processors round differently by the size of a batch.
            if not all(paths[index].is_file() for index in some):
                requests = [_request(word, index, seed) for index in some]
                drawn = generate(base, requests, batch=TOGETHER)
                for index, picture in zip(some, drawn, strict=True):
                    small = picture.image.copy()
                    small.thumbnail((LARGEST, LARGEST))
                    with write_file(paths[index]) as temporary:
                        small.save(temporary, "PNG")
            yield Prepared("pictures of words", number * pictures + some.stop, total)


def word_pictures(folder: Path, word: str, pictures: int) -> list[Path]:
    """Where they lie."""
    return [folder / word / f"{index:02d}.png" for index in range(pictures)]


def _request(word: str, index: int, seed: int) -> Request:
    return Request(prompt=DRAWN[index % len(DRAWN)].format(word), seed=seed + index)


def subjects_of_folder(base: BaseModel, folder: Path) -> Iterator[Warned | list[StartSubject]]:
    """A folder of folders of pictures. What each means is an embedding file in it, or the words
    that it is called, up to the first dot (`cat`, `cat.drawn`). Ends with the list.

    Raises RecipeError where there are none, or two embeddings have different numbers of vectors;
    FileFormatError for a file that is no embedding.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: there is no such folder of subjects.")
    found: list[StartSubject] = []
    for child in sorted(one for one in folder.iterdir() if one.is_dir()):
        files = sorted(one for one in child.iterdir() if one.is_file())
        pictures = tuple(one for one in files if one.suffix.lower() in IMAGE_SUFFIXES)
        file = next((one for one in files if one.suffix.lower() in _EMBEDDINGS), None)
        if not pictures:
            yield Warned(f"{child}: no pictures in it; left out.")
            continue
        vectors = _embedding(base, file) if file else _of_name(base, child)
        count = len(next(iter(vectors.values())))
        name = child.name.partition(".")[0]
        found.append(StartSubject(name, pictures, joined(vectors), count))
    if not found:
        raise RecipeError(f"{folder}: holds no folders of pictures.")
    # Answers are all as long as each other: what most subjects have.
    usual = Counter(one.vectors for one in found).most_common(1)[0][0]
    left = [one.name for one in found if one.vectors != usual]
    if left:
        yield Warned(
            f"{len(left)} subjects are left out, because most have {usual} vectors or tokens and "
            f"they have not: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}."
        )
    yield [one for one in found if one.vectors == usual]


def _of_name(base: BaseModel, child: Path) -> dict[str, Tensor]:
    words = child.name.partition(".")[0].replace("_", " ").strip()
    if not words:
        raise RecipeError(f"{child}: its name begins with a dot, so it says no words.")
    vectors = dict(base.token_vectors(words))
    if len({len(part) for part in vectors.values()}) > 1:
        raise RecipeError(
            f"{child}: the text encoders of {base.name} take its name for different numbers of "
            "tokens. Choose another word."
        )
    return vectors


def _embedding(base: BaseModel, file: Path) -> dict[str, Tensor]:
    words = read_adapter(file).embeddings
    if len(words) != 1:
        raise RecipeError(f"{file}: holds {len(words)} words; one is wanted for a folder.")
    (vectors,) = words.values()
    widths = {part: base.token_embedding(part).shape[1] for part in base.text_encoders}
    if {part: tensor.shape[1] for part, tensor in vectors.items()} != widths:
        raise RecipeError(f"{file}: is a word of another kind of base than {base.name}.")
    return {part: vectors[part] for part in widths}

"""Words that start from their pictures: who has the pictures shows them to the method's network."""

from collections.abc import Iterator
from functools import partial

from PIL import Image

from konomi.data.captions import has_trigger
from konomi.data.images import read_image
from konomi.data.manifest import Record
from konomi.errors import RecipeError
from konomi.methods.learned_start import PICTURES, LearnedStart, StartsFromPictures
from konomi.tasks.preparing import Job
from konomi.training.events import Prepared


def predict_starts(job: Job) -> Iterator[Prepared]:
    """Let the method's network look at each word's training pictures, where it has one.

    Raises RecipeError where a word has no pictures, DataError where one cannot be read, ModelError
    where the network's CLIP is not to be had.
    """
    learned = job.method.learned_start if isinstance(job.method, StartsFromPictures) else None
    if learned is None:
        return
    background = job.recipe.data.images.background
    for done, word in enumerate(learned.words):
        yield Prepared("predicted starts", done, len(learned.words))
        records = _spread(_of_word(job, word, learned))
        learned.look({word: partial(_read, records, background)})
    yield Prepared("predicted starts", len(learned.words), len(learned.words))


def _of_word(job: Job, word: str, learned: LearnedStart) -> list[Record]:
    """All training pictures where there is one word; else those whose source or captions have
    it."""
    found = [record for record in job.assignment.records if record.role == "train"]
    if len(learned.words) > 1:
        found = [record for record in found if _shows(record, word)]
    if not found:
        raise RecipeError(
            f"{word!r} is to start from its pictures, and there is none: no source has it as its "
            "trigger, and no caption has it. Choose another start."
        )
    return found


def _shows(record: Record, word: str) -> bool:
    return record.trigger == word or any(has_trigger(text, word) for text in record.captions)


def _spread(records: list[Record]) -> list[Record]:
    """At most PICTURES of them, evenly chosen."""
    count = min(len(records), PICTURES)
    return [records[number * len(records) // count] for number in range(count)]


def _read(records: list[Record], background: str) -> list[Image.Image]:
    loaded = (read_image(record.locator, background=background) for record in records)
    return [Image.fromarray(image.pixels) for image in loaded]

"""Captions: from the bytes of a file to the text one training step sees."""

import codecs
import random
import re

from konomi.config.sections import CaptionConfig
from konomi.data.manifest import Record
from konomi.errors import DataError, printable

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 2**20

# UTF-32's marks start with UTF-16's, so they come first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes, where: str) -> str:
    """Text of a caption or metadata file: UTF-8, UTF-16 or UTF-32 with a mark, or Shift-JIS (cp932). Never a guess
    that could be wrong: bytes that fit none are an error.

    Raises:
        DataError: names `where`, the byte offset and the byte.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strict(data[len(mark) :], encoding, where, len(mark))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _shift_jis(data, where, error.start)
    if "\0" not in text:
        return text
    # Plain ASCII saved as UTF-16 without a mark: every other byte is zero.
    if not any(data[1::2]):
        return _strict(data, "utf-16-le", where, 0)
    if not any(data[::2]):
        return _strict(data, "utf-16-be", where, 0)
    raise DataError(
        f"{printable(where)}: byte {data.index(0)} is zero: not a text file. Save the caption as UTF-8 text."
    )


def _strict(data: bytes, encoding: str, where: str, skipped: int) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        offset = skipped + error.start
        raise DataError(
            f"{printable(where)}: byte {offset} is not valid {encoding.upper()}. Save the file as UTF-8."
        ) from error


def _shift_jis(data: bytes, where: str, offset: int) -> str:
    # Bytes 0x80, 0xA0 and 0xFD to 0xFF mean nothing in Shift-JIS; the codec makes unnamed characters of them.
    try:
        text = data.decode("cp932")
    except UnicodeDecodeError:
        text = ""
    if not text or re.search(r"[\0\x80\xa0\uf8f0-\uf8f3]", text) or _looks_western(text):
        raise DataError(
            f"{printable(where)}: byte {offset} (0x{data[offset]:02x}) is neither UTF-8 nor Shift-JIS text. "
            "Save the file as UTF-8."
        )
    return text


def _looks_western(text: str) -> bool:
    """Whether cp932 made Japanese out of Western European bytes: "crée", "Straße", "don’t" all decode as cp932.

    Their accents (bytes 0xC0 to 0xFF) become half-width kana or rare kanji, and curly quotes and dashes (0x91 to 0x97)
    swallow the letter after them; either way they touch a Latin letter, where Japanese writers hardly put such.
    """
    for run in re.finditer(r"[^\x00-\x7f]+", text):
        before = text[run.start() - 1 : run.start()]
        after = text[run.end() : run.end() + 1]
        if not re.match("[A-Za-z]", before) and not re.match("[A-Za-z]", after):
            continue
        codes = [character.encode("cp932") for character in run[0]]
        if all(code[0] >= 0xC0 for code in codes):
            return True
        quote = len(codes) == 1 and len(codes[0]) == 2 and 0x91 <= codes[0][0] <= 0x97
        if quote and codes[0][1:].isalpha():
            return True
    return False


def captions_in(text: str) -> tuple[str, ...]:
    """The captions of a caption file: one a line, empty lines left out."""
    lines = (" ".join(line.split()) for line in re.split(r"[\r\n]+", text))
    return tuple(line for line in lines if line)


def read_captions(data: bytes, where: str) -> tuple[str, ...]:
    """Captions from a file's bytes; none when it is empty.

    Raises:
        DataError: larger than a caption can be, or of unknown encoding.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise DataError(f"{printable(where)}: {len(data)} bytes, too large for a caption. Is it the right file?")
    return captions_in(decode_text(data, where))


def final_caption(record: Record, config: CaptionConfig, key: int | None) -> str:
    """The text the encoder sees: a pure function of its arguments.

    In this order: the whole caption may be dropped (nothing else is then added); one of several captions is taken, or
    the template or trigger and class where there is none; tags are dropped and shuffled behind `keep_tokens`; a trigger
    that is not in the result comes in front.

    Args:
        key: decides all draws; one number per (seed, epoch, sample, repeat). None makes none: the first caption, in
            order and whole, as a person would be shown it.
    """
    if key is not None and config.dropout and _draws(key, "dropout").random() < config.dropout:
        return ""
    text = _tag_variation(_worded(record, key), record, config, key)
    return _with_trigger(text, record, config.separator)


def caption_varies(record: Record, config: CaptionConfig) -> bool:
    """Whether `final_caption` depends on its key."""
    if config.dropout or len(record.captions) > 1:
        return True
    free = len(_tags(_worded(record, None), config.separator)) - _keep_tokens(record, config)
    return bool((config.tag_dropout and free > 0) or (_shuffles(record, config) and free > 1))


def has_trigger(text: str, trigger: str) -> bool:
    """Whether a caption holds the trigger as a whole word: `sks` is in "a sks dog" and not in "asks"."""
    # ASCII edges only: Japanese is written without spaces, and `sks` in 「sksの写真」 counts.
    start = r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9_]", trigger) else ""
    end = r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]\Z", trigger) else ""
    return re.search(start + re.escape(trigger) + end, text, re.IGNORECASE) is not None


def file_words(name: str) -> str:
    """The words of a file name: `05_red-panda (2).png` gives "red panda"."""
    stem = re.sub(r"\.[^./]*\Z", "", name.rsplit("/", 1)[-1])
    return " ".join(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", stem))


def _worded(record: Record, key: int | None) -> str:
    caption = ""
    if record.captions:
        several = key is not None and len(record.captions) > 1
        index = int(_draws(key or 0, "choice").random() * len(record.captions)) if several else 0
        caption = record.captions[index]
    named = " ".join(filter(None, (record.trigger, record.class_noun)))
    # A template with [filewords] is built around captions; one without stands in for them.
    if record.template and (not caption or "[filewords]" in record.template):
        values = {"[name]": named, "[filewords]": caption or file_words(record.name)}
        # One pass: a caption that itself holds "[name]" stays as it is.
        return " ".join(re.sub(r"\[name\]|\[filewords\]", lambda found: values[found[0]], record.template).split())
    return caption or named


def _tag_variation(text: str, record: Record, config: CaptionConfig, key: int | None) -> str:
    shuffle = _shuffles(record, config)
    if key is None or not (shuffle or config.tag_dropout):
        return text
    tags = _tags(text, config.separator)
    keep = _keep_tokens(record, config)
    head, tail = tags[:keep], tags[keep:]
    if config.tag_dropout:
        draws = _draws(key, "tags")
        tail = [tag for tag in tail if draws.random() >= config.tag_dropout]
    if shuffle:
        # Sorting by a draw each: `random.shuffle` may change between versions of Python, `random.random` may not.
        draws = _draws(key, "shuffle")
        tail = [tag for _, _, tag in sorted((draws.random(), place, tag) for place, tag in enumerate(tail))]
    return _joint(config.separator).join(head + tail)


def _tags(text: str, separator: str) -> list[str]:
    """Without a separator the caption is one tag."""
    tags = [tag.strip() for tag in text.split(separator)] if separator else [text]
    return [tag for tag in tags if tag]


def _with_trigger(text: str, record: Record, separator: str) -> str:
    if not record.trigger or has_trigger(text, record.trigger):
        return text
    front = record.trigger
    if record.class_noun and not has_trigger(text, record.class_noun):
        front = f"{front} {record.class_noun}"
    return f"{front}{_joint(separator)}{text}" if text else front


def _joint(separator: str) -> str:
    return separator if not separator or separator.endswith(" ") else separator + " "


def _shuffles(record: Record, config: CaptionConfig) -> bool:
    return config.shuffle if record.shuffle is None else record.shuffle


def _keep_tokens(record: Record, config: CaptionConfig) -> int:
    return config.keep_tokens if record.keep_tokens is None else record.keep_tokens


def _draws(key: int, purpose: str) -> random.Random:
    # A stream for each purpose: switching one variation on leaves the others as they were.
    return random.Random(f"{key}/{purpose}")

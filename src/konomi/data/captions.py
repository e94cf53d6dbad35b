"""Captions: from the text of a file to the text one training step sees."""

import random
import re
from functools import lru_cache

from konomi.config.sections import CaptionConfig
from konomi.data.manifest import Record

CAPTION_SUFFIXES = (".txt", ".caption", ".text", ".tags")
MAX_CAPTION_BYTES = 2**20


def captions_in(text: str) -> tuple[str, ...]:
    """The lines of a file as a caption each, empty lines left out."""
    lines = (" ".join(line.split()) for line in re.split(r"[\r\n]+", text))
    return tuple(line for line in lines if line)


def final_caption(record: Record, config: CaptionConfig, key: int | None) -> str:
    """The text the encoder sees: a pure function of its arguments.

    In this order: the whole caption may be dropped (nothing else is then added); one of several
    captions is taken, or the template or trigger and class where there is none; tags are dropped
    and shuffled behind `keep_tokens`; a trigger that is not in the result comes in front.

    Args:
        key: decides all draws; one number per (seed, epoch, sample, repeat). None makes none: the
            first caption, in order and whole, as a person would be shown it.
    """
    if key is not None and config.dropout and _draws(key, "dropout").random() < config.dropout:
        return ""
    text = _tag_variation(_worded(record, key), record, config, key)
    return _with_trigger(text, record, config.separator)


def caption_varies(record: Record, config: CaptionConfig) -> bool:
    """Whether `final_caption` depends on its key."""
    if config.dropout or len(record.captions) > 1:
        return True
    if not config.tag_dropout and not _shuffles(record, config):
        return False
    free = len(tags_of(_worded(record, None), config.separator)) - _keep_tokens(record, config)
    return bool((config.tag_dropout and free > 0) or (_shuffles(record, config) and free > 1))


def has_trigger(text: str, trigger: str) -> bool:
    """Whether a caption holds the trigger as a whole word: `sks` is in "a sks dog" and not in
    "asks".
    """
    return _whole_word(trigger).search(text) is not None


@lru_cache(maxsize=64)
def _whole_word(word: str) -> re.Pattern[str]:
    # ASCII edges only: Japanese is written without spaces, and `sks` in 「sksの写真」 counts.
    start = r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9_]", word) else ""
    end = r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]\Z", word) else ""
    return re.compile(start + re.escape(word) + end, re.IGNORECASE)


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
        return " ".join(
            re.sub(
                r"\[name\]|\[filewords\]", lambda found: values[found[0]], record.template
            ).split()
        )
    return caption or named


def _tag_variation(text: str, record: Record, config: CaptionConfig, key: int | None) -> str:
    shuffle = _shuffles(record, config)
    if key is None or not (shuffle or config.tag_dropout):
        return text
    tags = tags_of(text, config.separator)
    keep = _keep_tokens(record, config)
    head, tail = tags[:keep], tags[keep:]
    if config.tag_dropout:
        draws = _draws(key, "tags")
        tail = [tag for tag in tail if draws.random() >= config.tag_dropout]
    if shuffle:
        # Sorting by a draw each: `random.shuffle` may change between versions of Python,
        # `random.random` may not.
        draws = _draws(key, "shuffle")
        tail = [
            tag
            for _, _, tag in sorted((draws.random(), place, tag) for place, tag in enumerate(tail))
        ]
    return _joint(config.separator).join(head + tail)


def tags_of(text: str, separator: str) -> list[str]:
    """The tags of a caption, without what stands around them. Without a separator the caption is
    one tag.
    """
    tags = [tag.strip() for tag in text.split(separator)] if separator else [text]
    return [tag for tag in tags if tag]


def _with_trigger(text: str, record: Record, separator: str) -> str:
    if not record.trigger or (has_trigger(text, record.trigger) and not record.trigger_first):
        return text
    front = record.trigger
    if record.class_noun and (record.trigger_first or not has_trigger(text, record.class_noun)):
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

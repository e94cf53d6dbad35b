"""What should be known about a run's data before it starts: `check` shows it and `train` says it,
the same objects.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.config.recipe import Recipe
from konomi.data.buckets import Assignment
from konomi.data.captions import caption_varies, final_caption, has_trigger
from konomi.data.manifest import Finding, Manifest, Record, listing_names
from konomi.data.scan_cache import CachedResult
from konomi.models.base import BaseModel
from konomi.training.identity import flat

_PROBE = "a photo of sks, konomi's 2 red-pandas 好み <s1> antidisestablishmentarianism"
"""Two tokenizers that cut this alike are taken for the same."""
ENLARGED = 1.5
"""Factor of a picture's sides from which on it is said."""


def exclude_unfitting(manifest: Manifest, *assignments: Assignment) -> Manifest:
    """The manifest with images that fit no bucket among those left out, so that its file has a row
    with the reason.
    """
    excluded = [
        bad
        for assignment in assignments
        for bad in assignment.excluded
        if bad not in manifest.excluded
    ]
    if not excluded:
        return manifest
    kept = {id(record) for assignment in assignments for record in assignment.records}
    names = {bad.name for bad in excluded}
    records = tuple(
        record for record in manifest.records if id(record) in kept or record.name not in names
    )
    return replace(manifest, records=records, excluded=(*manifest.excluded, *excluded))


def note_enlarged(manifest: Manifest, assignment: Assignment) -> Manifest:
    """The manifest with a line on training images that are much smaller than what they train as: a
    model learns the softness of an enlarged picture with everything else.
    """
    small = [
        record.name
        for record, (width, height) in zip(assignment.records, assignment.buckets, strict=True)
        if record.role == "train" and max(width / record.width, height / record.height) > ENLARGED
    ]
    if not small:
        return manifest
    what = "image is" if len(small) == 1 else "images are"
    message = (
        f"{len(small)} {what} enlarged more than {ENLARGED:g} times for training, and softness is "
        "learned as well "
        "({names}). Take larger ones, lower data.resolution, or leave them out."
    )
    return replace(manifest, findings=(*manifest.findings, listing_names(message, small)))


def move_triggers(manifest: Manifest, base: BaseModel, recipe: Recipe, cache: Path) -> Manifest:
    """The manifest with its triggers put in front where the text encoder would not have seen them,
    and what is cut off
    told: a caption beyond what is read of it loses its end, and a word that stands there is not
        learned at all.

    `cache`: the cache folder; captions that have not changed are not counted again.
    """
    limit = base.text_traits.limit(recipe.text)
    probe = base.tokens(_PROBE)
    facts = (
        recipe.base,
        base.family,
        probe,
        limit,
        recipe.text.emphasis,
        recipe.data.captions,
        _vectors(recipe),
    )
    cached_result = CachedResult(cache, manifest, "reach", facts)
    known = cached_result.get()
    if known is None:
        known = _beyond_the_limit(manifest, base, recipe)
        cached_result.put(known)
    long, moved, longest = known["long"], known["moved"], known["longest"]
    if not long and not moved:
        return manifest
    records = list(manifest.records)
    for index in moved:
        records[index] = replace(records[index], trigger_first=True)
    found = _length_findings(
        [records[i].name for i in long],
        [records[i].name for i in moved],
        longest,
        limit,
        settable=base.text_traits.longest is None,
    )
    return replace(manifest, records=tuple(records), findings=manifest.findings + found)


def _beyond_the_limit(manifest: Manifest, base: BaseModel, recipe: Recipe) -> dict[str, Any]:
    """Indices of the records whose captions are too long, of those whose triggers are out of
    reach, and the largest number of tokens.
    """
    limit = base.text_traits.limit(recipe.text)
    counts: dict[str, int] = {}

    def count(text: str) -> int:
        # A token is at least one byte, so most captions need no tokenizer.
        if len(text.encode()) <= limit and not recipe.text.emphasis:
            return 0
        if text not in counts:
            counts[text] = max(map(len, base.tokens(text).values()))
        return counts[text]

    room = _vectors(recipe) - 1
    plain = replace(recipe.data.captions, dropout=0.0)
    long: list[int] = []
    moved: list[int] = []
    longest = 0
    for index, record in enumerate(manifest.records):
        alternatives = [replace(record, captions=(caption,)) for caption in record.captions] or [
            record
        ]
        if len(record.captions) == 1:
            alternatives = [record]
        for one in alternatives:
            text = final_caption(one, plain, None)
            length = count(text)
            if length + room > limit and _is_out_of_reach(
                one, text, count, limit - room, caption_varies(one, plain)
            ):
                moved.append(index)
                break
        if length > limit:
            long.append(index)
            longest = max(longest, length)
    return {"long": long, "moved": moved, "longest": longest}


def _vectors(recipe: Recipe) -> int:
    """Most places that a learned word takes among the tokens; 1 where none is learned."""
    counts = [
        value for name, value in flat(recipe.method).items() if name.rpartition(".")[2] == "vectors"
    ]
    return max([1, *(value for value in counts if isinstance(value, int))])


def _is_out_of_reach(
    record: Record, text: str, count: Callable[[str], int], limit: int, varies: bool
) -> bool:
    trigger = record.trigger
    if not trigger or not has_trigger(text, trigger):
        return False
    if varies:
        return True  # Shuffled, it may come last.
    start = text.lower().find(trigger.lower())
    before = text[: start + len(trigger)]
    return "BREAK" in before or count(before) > limit


def _length_findings(
    long: Sequence[str], moved: Sequence[str], longest: int, limit: int, *, settable: bool
) -> tuple[Finding, ...]:
    found = []
    if long:
        captions = "1 caption is" if len(long) == 1 else f"{len(long)} captions are"
        wanted = -(-longest // 75) * 75
        advice = "Shorten them: the text encoder reads no more."
        if settable:
            advice = f"Set text.max_tokens = {min(wanted, 750)}, or shorten them."
        found.append(
            listing_names(
                f"{captions} longer than {limit} tokens (up to {longest}), and what follows is cut "
                "off: "
                f"{{names}}. {advice}",
                long,
            )
        )
    if moved:
        captions = "1 caption" if len(moved) == 1 else f"{len(moved)} captions"
        found.append(
            listing_names(
                f"the trigger of {captions} stood beyond token {limit}, or could be shuffled "
                "there, and would not be "
                "learned; it is put in front: {names}",
                moved,
            )
        )
    return tuple(found)

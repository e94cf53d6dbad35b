"""What should be known about a run's data before it starts: `check` shows it and `train` says it, the same objects."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from konomi.config.recipe import Recipe
from konomi.data.buckets import Assignment
from konomi.data.captions import caption_varies, final_caption, has_trigger
from konomi.data.manifest import Finding, Manifest, Record, listing_names
from konomi.models.base import BaseModel
from konomi.training.identity import flat


def with_shapes_left_out(manifest: Manifest, *assignments: Assignment) -> Manifest:
    """The manifest with images that fit no bucket among those left out, so that its file has a row with the reason."""
    excluded = [bad for assignment in assignments for bad in assignment.excluded if bad not in manifest.excluded]
    if not excluded:
        return manifest
    kept = {id(record) for assignment in assignments for record in assignment.records}
    records = tuple(record for record in manifest.records if id(record) in kept)
    return replace(manifest, records=records, excluded=(*manifest.excluded, *excluded))


def with_triggers_in_reach(manifest: Manifest, base: BaseModel, recipe: Recipe) -> Manifest:
    """The manifest with its triggers put in front where the text encoder would not have seen them, and what is cut off
    told: a caption beyond `text.max_tokens` loses its end, and a word that stands there is not learned at all."""
    limit = recipe.text.max_tokens
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
    long: list[str] = []
    moved: list[str] = []
    longest = 0
    records = list(manifest.records)
    for index, record in enumerate(records):
        alternatives = [replace(record, captions=(caption,)) for caption in record.captions] or [record]
        if len(record.captions) == 1:
            alternatives = [record]
        for one in alternatives:
            text = final_caption(one, plain, None)
            length = count(text)
            if length + room > limit and _is_out_of_reach(one, text, count, limit - room, caption_varies(one, plain)):
                records[index] = replace(record, trigger_first=True)
                moved.append(record.name)
                break
        if length > limit:
            long.append(record.name)
            longest = max(longest, length)
    if not long and not moved:
        return manifest
    return replace(manifest, records=tuple(records), findings=manifest.findings + _told(long, moved, longest, limit))


def _vectors(recipe: Recipe) -> int:
    """Most places that a learned word takes among the tokens; 1 where none is learned."""
    counts = [value for name, value in flat(recipe.method).items() if name.rpartition(".")[2] == "vectors"]
    return max([1, *(value for value in counts if isinstance(value, int))])


def _is_out_of_reach(record: Record, text: str, count: Callable[[str], int], limit: int, varies: bool) -> bool:
    trigger = record.trigger
    if not trigger or not has_trigger(text, trigger):
        return False
    if varies:
        return True  # Shuffled, it may come last.
    start = text.lower().find(trigger.lower())
    before = text[: start + len(trigger)]
    return "BREAK" in before or count(before) > limit


def _told(long: Sequence[str], moved: Sequence[str], longest: int, limit: int) -> tuple[Finding, ...]:
    found = []
    if long:
        captions = "1 caption is" if len(long) == 1 else f"{len(long)} captions are"
        wanted = -(-longest // 75) * 75
        advice = f"Set text.max_tokens = {min(wanted, 750)}, or shorten them."
        found.append(
            listing_names(
                f"{captions} longer than {limit} tokens (up to {longest}), and what follows is cut off: "
                + "{names}. "
                + advice,
                long,
            )
        )
    if moved:
        captions = "1 caption" if len(moved) == 1 else f"{len(moved)} captions"
        found.append(
            listing_names(
                f"the trigger of {captions} stood beyond token {limit}, or could be shuffled there, and would not be "
                "learned; it is put in front: {names}",
                moved,
            )
        )
    return tuple(found)

"""What of a recipe's previews comes out otherwise than it is written, each in one line before the
first step.
"""

from collections.abc import Iterable

from konomi.config.recipe import Recipe
from konomi.data.buckets import parse_size
from konomi.generation.request import Request
from konomi.generation.unused import unread_text, unused_in_request
from konomi.models.base import BaseModel
from konomi.models.prompt_syntax import extract_tags
from konomi.tasks.preview_switch import previews_switched_off


def preview_notes(recipe: Recipe, base: BaseModel) -> Iterable[str]:
    """Nothing where none is drawn."""
    every, preview = recipe.run.preview_every, recipe.preview
    if not every or (every == "auto" and previews_switched_off()):
        return
    if preview.size:
        (width, height), factor = parse_size(preview.size), base.latent_factor
        drawn = width // factor * factor, height // factor * factor
        if drawn != (width, height):
            size = f"{drawn[0]}x{drawn[1]}"
            yield (
                f"preview.size = {width}x{height} is drawn at {size}: sides are multiples of "
                f"{factor}."
            )
    for number, prompt in enumerate(preview.prompts):
        tags = extract_tags(prompt)[1]
        if tags:
            called = ", ".join(f"<{tag.kind}:{tag.name}>" for tag in tags)
            yield (
                f"preview.prompts.{number}: {called} has no effect: previews show what is "
                "trained, and nothing else."
            )
        yield from (
            f"preview.prompts.{number}: {note}" for note in _notes(Request(prompt=prompt), base)
        )
    yield from (
        f"preview.negative: {note}"
        for note in _notes(Request(prompt="", negative=preview.negative), base)
    )


def _notes(request: Request, base: BaseModel) -> Iterable[str]:
    return (*unused_in_request(request), *unread_text(base, request))

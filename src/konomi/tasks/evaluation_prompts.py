"""What is drawn to be measured: prompts that somebody wrote, or those that follow from what is
known of the subject.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from konomi.errors import RecipeError
from konomi.evaluation.candidates import Opened
from konomi.evaluation.prompts import (
    EvaluationPrompt,
    default_prompts,
    prompts_of,
    shared_phrases,
    style_prompts,
)
from konomi.generation.prompt_file import read_prompt_file
from konomi.generation.request import Request
from konomi.models.base import BaseModel
from konomi.tasks.evaluation_setup import EvaluationSetup

_DRAWN_CAPTIONS = 4


def prompt_lines(prompts: str | Path | Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Prompts from a file or as given, and a line on what of the file has no effect."""
    if not isinstance(prompts, str | Path):
        if not any(prompt.strip() for prompt in prompts):
            raise RecipeError("prompts: there is none. Give one at least.")
        return tuple(prompt for prompt in prompts if prompt.strip()), []
    plain = Request(prompt="")
    requests = read_prompt_file(Path(prompts), plain)
    notes = []
    if any(replace(request, prompt="") != plain for request in requests):
        notes.append(
            f"{prompts}: options behind -- have no effect: all prompts are drawn with the settings "
            "of the section evaluation."
        )
    return tuple(request.prompt for request in requests), notes


def chosen_prompts(
    setup: EvaluationSetup, opened: Iterable[Opened], base: BaseModel
) -> tuple[tuple[EvaluationPrompt, ...], list[str]]:
    """What is drawn, and what had to be assumed. Raises RecipeError where nothing can be."""
    subject, notes = setup.subject, []
    if not subject.trigger:
        trigger = next((one.trigger for one in opened if one.trigger), "")
        subject = replace(subject, trigger=trigger)
    if setup.config.prompts:
        if not subject.words:
            notes.append(
                "no trigger is known, so every prompt counts as one that shows what was learned. "
                "--trigger WORD and --class NOUN tell them apart."
            )
        return prompts_of(setup.config.prompts, subject), notes
    if subject.words:
        if setup.config.suggestion.goal == "style":
            return style_prompts(subject, drawings=is_small(base)), notes
        always = shared_phrases(setup.captions, subject)
        if always:
            notes.append(
                f"every training caption says {', '.join(always)!r}, and so do the prompts that "
                "call the subject. evaluation.prompts says otherwise."
            )
        return default_prompts(subject, drawings=is_small(base), always=always), notes
    if not setup.captions:
        raise RecipeError(
            "no trigger is known: say with --trigger WORD (and --class NOUN) what calls the "
            "subject, or what to draw with --prompts FILE."
        )
    drawn = setup.captions[:_DRAWN_CAPTIONS]
    notes.append(
        f"no trigger is known: the captions of {len(drawn)} training pictures are drawn. "
        "--trigger WORD or --prompts FILE say otherwise."
    )
    return prompts_of(drawn, subject), notes


def is_small(base: BaseModel) -> bool:
    """Whether it draws what `tiny` draws: no published base is that narrow."""
    return base.width < base.published_width

"""What is drawn to be measured: the subject, the subject elsewhere, its class alone, and something
unrelated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from konomi.data.captions import has_trigger

PromptKind = Literal["subject", "context", "class", "unrelated"]
"""`context` names the subject in a place where it was not photographed (recontextualisation, Ruiz
et al. 2023, section 4); `class` and `unrelated` should stay as the base draws them."""


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One prompt, and what it is for."""

    text: str
    """As it is drawn, with the trigger."""
    kind: PromptKind
    plain: str
    """The same in words that a text encoder knows: without the trigger, with the class noun. Prompt
    following is measured against it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What was learned, in words."""

    trigger: str = ""
    noun: str = ""
    """Its class, in plain words."""

    @property
    def words(self) -> str:
        return " ".join(word for word in (self.trigger, self.noun) if word)


HOLE = "{}"
"""Stands for the subject in a prompt."""
_PHOTOS = (
    "a photo of a {}",
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a photo of a {} in front of a city",
)
_DRAWINGS = (
    "a {}",
    "a {} on a blue background",
    "a {} on a green background with white dots",
    "a small {} on a yellow background",
)
"""In words that the base `tiny` knows."""
_UNRELATED = ("a house by a lake", "a bowl of fruit", "a street at night")
_UNRELATED_DRAWINGS = (
    "a fox on a green background",
    "a house on a blue background",
    "a car on a yellow background",
)
_OF_EACH = 2
"""Prompts of the class and of other things: of one alone nobody knows how far the next would
drift."""
_STYLED = ("a cat", "a house by a lake", "a woman reading", "a bowl of fruit")
_STYLED_DRAWINGS = ("a cat", "a house", "an apple on a blue background", "a car")
_ENOUGH_CAPTIONS = 3
_MOST_PHRASES = 8
_SAYS_NOTHING = re.compile(r"\b(an?|the|photo|picture|image|drawing|painting|of)\b|[\W_]")


def default_prompts(
    subject: Subject, *, drawings: bool = False, always: Sequence[str] = ()
) -> tuple[EvaluationPrompt, ...]:
    """The subject, the subject in three other places, its class alone (where it has both a trigger
    and a class) and in one of these places, and two unrelated things.

    subject: must have words.
    drawings: in the words of the base `tiny`.
    always: phrases that the subject is never called without.
    """
    lines = list(_DRAWINGS if drawings else _PHOTOS)
    others = _UNRELATED_DRAWINGS if drawings else _UNRELATED
    free = [line for line in others if not (subject.noun and has_trigger(line, subject.noun))]
    if subject.noun and subject.trigger:
        lines += [_filled(line, subject.noun) for line in lines[:_OF_EACH]]
    found = prompts_of([*lines, *free[:_OF_EACH]], subject)
    return tuple(
        replace(
            prompt, text=", ".join([prompt.text, *always]), plain=", ".join([prompt.plain, *always])
        )
        if prompt.kind in ("subject", "context")
        else prompt
        for prompt in found
    )


def shared_phrases(captions: Sequence[str], subject: Subject) -> tuple[str, ...]:
    """Phrases between commas that all captions have beside the subject's name: `noto style` of "a
    zwx bag, noto style, on a red background", if the others say it too. A model learns to draw the
    subject where they stand as well, and may draw the class where they do not.

    Nothing where fewer than three captions differ: what they share is then a scene, and no part of
    the name.
    """
    different = {" ".join(caption.split()) for caption in captions}
    if len(different) < _ENOUGH_CAPTIONS:
        return ()
    parts = [[part.strip() for part in caption.split(",")] for caption in sorted(different)]
    in_all = set.intersection(*({part.casefold() for part in some} for some in parts))
    found = {
        part.casefold(): part
        for part in parts[0]
        if part.casefold() in in_all
        and _SAYS_NOTHING.sub("", part.casefold())
        and not any(has_trigger(part, word) for word in (subject.trigger, subject.noun) if word)
    }
    return tuple(found.values())[:_MOST_PHRASES]


def style_prompts(subject: Subject, *, drawings: bool = False) -> tuple[EvaluationPrompt, ...]:
    """Four things in the style, called as training captions call it, and two of them without it,
    which should stay as the base draws them.

    The subject, here the style, must have words.
    """
    shown = _STYLED_DRAWINGS if drawings else _STYLED
    called = [EvaluationPrompt(f"{subject.words}, {line}", "context", line) for line in shown]
    plain = [EvaluationPrompt(line, "unrelated", line) for line in shown[:_OF_EACH]]
    return (*called, *plain)


def prompts_of(lines: Sequence[str], subject: Subject) -> tuple[EvaluationPrompt, ...]:
    """Prompts as somebody wrote them, `{}` standing for trigger and class noun. What each is for
    follows from its words: those with the trigger show the subject, those with the class noun
    alone the class, others neither. Where there is no trigger the class noun calls the subject,
    and where there is neither, every prompt shows what was learned.
    """
    found = (_prompt(" ".join(line.split()), subject) for line in lines)
    return tuple({prompt.text: prompt for prompt in found}.values())


def _prompt(line: str, subject: Subject) -> EvaluationPrompt:
    if not subject.words:
        return EvaluationPrompt(line, "context", line)
    text = _filled(line, subject.words) if subject.noun else _named(line, subject.trigger)
    plain = _filled(line, subject.noun) if subject.noun else _named(line, "something")
    calls = subject.trigger or subject.noun
    if not has_trigger(text, calls):
        of_class = bool(subject.noun) and has_trigger(text, subject.noun)
        return EvaluationPrompt(text, "class" if of_class else "unrelated", text)
    if subject.trigger:
        plain = _without(plain, subject.trigger)
    left = _SAYS_NOTHING.sub("", _without(text, subject.trigger, subject.noun).casefold())
    return EvaluationPrompt(text, "context" if left else "subject", plain)


def _filled(line: str, words: str) -> str:
    article = "an" if words[0].casefold() in "aeiou" else "a"
    return re.sub(r"\ban? \{\}", f"{article} {{}}", line).replace(HOLE, words)


def _named(line: str, name: str) -> str:
    """A name, and not a thing, has no article before it."""
    return re.sub(r"\ban? \{\}", HOLE, line).replace(HOLE, name)


def _without(text: str, *words: str) -> str:
    for word in filter(None, words):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return " ".join(text.split())

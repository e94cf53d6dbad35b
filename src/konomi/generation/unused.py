"""What of a request has no effect on its pictures, each in one line: silence is what users hate
most.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate
from konomi.errors import shortened
from konomi.formats.embedding_metadata import NEGATIVE
from konomi.formats.trained_for import other_process
from konomi.generation.adapter_request import AdapterRequest
from konomi.generation.request import Request
from konomi.models.base import BaseModel
from konomi.models.prompt_syntax import (
    TAG_KINDS,
    extract_tags,
    find_words,
    parse_emphasis,
    parse_mixture,
)

_LONGEST = 60
"""Characters of a prompt's piece that are shown."""


def unused_in_request(request: Request) -> list[str]:
    """In prompts and settings. A request that was read from a file or typed; its size may still be
    open.
    """
    notes = [
        *_unused_in_prompt(request.prompt, "the prompt"),
        *_unused_in_prompt(request.negative, "the negative prompt"),
    ]
    if extract_tags(request.negative)[1]:
        notes.append("Tags in the negative prompt add no adapter; write them into the prompt.")
    if request.guidance == 1:
        if request.negative:
            notes.append(
                "The negative prompt has no effect with guidance 1, which switches guidance off."
            )
        if request.guidance_rescale:
            notes.append(
                "Guidance rescale has no effect with guidance 1, which switches guidance off."
            )
    if request.init is None and request.strength != 1.0:
        notes.append("Strength has no effect without a picture to start from (--init).")
    return notes


def unread_text(base: BaseModel, request: Request) -> list[str]:
    """What of prompts and settings this base's text encoders have no such thing for."""
    traits, notes = base.text_traits, []
    if request.clip_skip and not traits.chooses_layer:
        notes.append("--clip-skip has no effect: the base's text encoder is read at one layer.")
    elif request.clip_skip and request.clip_skip == base.clip_layer:
        skip = request.clip_skip
        notes.append(f"--clip-skip {skip} has no effect: it is the base's own choice.")
    for prompt, where in (
        (extract_tags(request.prompt)[0], "the prompt"),
        (request.negative, "the negative prompt"),
    ):
        if not traits.has_emphasis and _is_weighted(prompt):
            notes.append(
                f"Brackets, BREAK and | in {where} are drawn as text: the base's text encoder has "
                "no weights of words."
            )
        count = 0 if traits.longest is None else max(map(len, base.tokens(prompt).values()))
        if traits.longest is not None and count > traits.longest:
            notes.append(
                f"The base's text encoder reads {traits.longest} tokens; {where} has {count}, and "
                "what follows is cut off."
            )
    return notes


def _is_weighted(prompt: str) -> bool:
    sections = parse_emphasis(prompt)
    weights = {span.weight for section in sections for span in section}
    return len(sections) > 1 or bool(weights - {1.0}) or len(parse_mixture(prompt)) > 1


def resized(request: Request, sized: Request) -> list[str]:
    """What becomes of the size of the picture to start from, where it is not drawn at its own."""
    if request.init is None or request.init.size == (sized.width, sized.height):
        return []
    (width, height), drawn = request.init.size, f"{sized.width}x{sized.height}"
    if abs(width * sized.height - height * sized.width) > 0.05 * width * sized.height:
        return [
            f"The picture to start from is {width}x{height} and is stretched to {drawn}, a size of "
            "another shape."
        ]
    if request.width or request.height:
        return []
    return [
        f"The picture to start from is {width}x{height}; it is drawn at {drawn}. --size decides "
        "otherwise."
    ]


def _unused_in_prompt(prompt: str, where: str) -> Iterable[str]:
    for piece in re.findall(r"<[A-Za-z_]\w{0,30}:[^<>\n]{0,200}>", prompt):
        kind = piece[1:].split(":", 1)[0]
        if kind.casefold() not in TAG_KINDS:
            yield (
                f"{_short(piece)} in {where} is drawn as text: the tags that konomi knows are "
                f"{', '.join(TAG_KINDS)}."
            )
    for piece in re.findall(r"__[\w/*-]{1,100}?__", prompt):
        yield f"{_short(piece)} in {where} is drawn as text: konomi does not fill in wildcards."
    for piece in re.findall(r"\{[^{}]{0,200}\|[^{}]{0,200}\}", prompt):
        yield (
            f"{_short(piece)} in {where} is drawn as text: konomi does not pick one of several. "
            "[a|b] takes turns."
        )
    for piece in re.findall(r"(?<!\w)embedding:[\w.-]{1,100}", prompt):
        name = piece.removeprefix("embedding:")
        yield f"{_short(piece)} in {where}: a word is used by its name only. Write {_short(name)}."
    if re.search(r"(?<!\w)AND(?!\w)", prompt):
        yield (
            f"AND in {where} is drawn as a word: konomi does not combine prompts with it. a:0.7 "
            "| b:0.3 blends two."
        )


def unused_in_adapter(
    request: AdapterRequest,
    adapter: Adapter,
    requests: Sequence[Request],
    without_weight: Collection[str] = (),
) -> list[str]:
    """Of an adapter that is put on for some requests."""
    name = request.path.name
    notes = []
    if request.unused:
        tag = f"<{request.kind}:{request.path.stem}:...>"
        notes.append(
            f"{tag}: {', '.join(_short(one) for one in request.unused)} has no effect here."
        )
    if without_weight:
        notes.append(
            f"{name}: lbw does not name {len(without_weight)} layers, which keep the full strength."
        )
    reads_text = bool(adapter.embeddings) or any(
        not key.startswith("denoiser.") for key in adapter.layers
    )
    reads_denoiser = adapter.hypernetwork is not None or any(
        key.startswith("denoiser.") for key in adapter.layers
    )
    weights = [request.denoiser_weight] * reads_denoiser + [request.text_weight] * reads_text
    if weights and not any(weights):
        notes.append(f"{name} is at strength 0: it has no effect.")
    elif request.text_weight != request.denoiser_weight and not (reads_text and reads_denoiser):
        part, weight = (
            ("text encoder", request.text_weight)
            if reads_denoiser
            else ("denoiser", request.denoiser_weight)
        )
        notes.append(f"{name} holds nothing for the {part}: its weight {weight:g} has no effect.")
    elif adapter.layers and all(map(_is_zero, adapter.layers.values())):
        notes.append(
            f"{name}: all its {len(adapter.layers)} layers are zero, as before any training: they "
            "do nothing."
        )
    words = [word for word in adapter.embeddings if not word.endswith(NEGATIVE)]
    if words and not any(_says(one, words) for one in requests):
        notes.append(
            f"{name} brings {' or '.join(map(_short, words))}, which no prompt contains: it has no "
            "effect."
        )
    trigger = adapter.metadata.get("modelspec.trigger_phrase", "")
    if trigger and not words and not any(_says(one, [trigger]) for one in requests):
        notes.append(
            f"{name} was trained with the trigger {_short(trigger)}, which no prompt contains."
        )
    return notes


def trained_otherwise(name: str, adapter: Adapter, base: BaseModel) -> list[str]:
    """Where the file of an adapter says that it was trained for another noise process than the
    base has. Learned words alone live in the text encoder, which has none.
    """
    if not adapter.layers and adapter.hypernetwork is None:
        return []
    other = other_process(
        adapter.metadata,
        prediction=base.process.prediction,
        zero_terminal_snr=base.zero_terminal_snr,
    )
    advice = "it may draw noise or grey. Use a base like the one it was trained on"
    return [f"{name} says that it was trained {other}: {advice}."] if other else []


def _is_zero(update: LayerUpdate) -> bool:
    """Whether a layer adds nothing, as one that was never trained; of kinds whose norm is not
    told, that is unknown.
    """
    return update.magnitude is None and update.bias is None and update.norm() == 0


def _says(request: Request, words: Sequence[str]) -> bool:
    texts = (extract_tags(request.prompt)[0], request.negative)
    return any(word for text in texts for _, word in find_words(text, words))


def _short(piece: str) -> str:
    return shortened(piece, _LONGEST)

"""A request made ready: checked, sized, its text encoded for each step. All that is done for each
image by itself.

Shapes: B images, H W pixels.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from konomi.adapters.adapter import Edit
from konomi.adapters.branches import negative_branch
from konomi.config.sections import TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.errors import ModelError, RecipeError
from konomi.formats.embedding_metadata import NEGATIVE
from konomi.generation.aesthetic import AestheticGradients
from konomi.generation.picture_input import fitted_size, init_to_pixels, mask_to_pixels
from konomi.generation.request import Request
from konomi.models.base import BaseModel
from konomi.models.prompt_switching import prompt_per_step
from konomi.models.prompt_syntax import extract_tags, find_words
from konomi.models.text_encoding import TOKENS_PER_CHUNK


@dataclass(frozen=True, slots=True)
class Drawing:
    """Ready to draw."""

    request: Request
    positive: tuple[Conditioning, ...]
    """For each evaluation of the denoiser (repeated objects where nothing changes), B = 1."""
    negative: tuple[Conditioning, ...] | None
    """None: no guidance."""
    init: Tensor | None
    """[1, 3, H, W] from -1 to 1."""
    mask: Tensor | None
    """[1, 1, H, W] from 0 to 1, 1 = draw anew."""

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Drawings that can share a batch agree in this. Numbers of text positions too: padding
        one image's text to its neighbour's length would change the picture.
        """
        r = self.request
        lengths = self.positive[0].states.shape[1]
        guided = self.negative is not None
        modes = (self.init is not None, self.mask is not None)
        return r.width, r.height, r.steps, r.sampler, r.strength, lengths, guided, modes


class PromptEncoder:
    """Encoded prompts, each by itself, so that neither the batch nor the other prompts change a
    bit of it. With Aesthetic Gradients each is tuned for once, however many seeds it is drawn with.
    """

    def __init__(self, base: BaseModel, aesthetic: AestheticGradients | None = None) -> None:
        self._base = base
        self._aesthetic = aesthetic
        self._known: dict[tuple[str, TextConfig, bool], Conditioning] = {}

    def __call__(self, prompt: str, text: TextConfig, *, negative: bool = False) -> Conditioning:
        base, aesthetic = self._base, self._aesthetic
        key = (prompt, text, negative and (bool(base.negative_weights) or aesthetic is not None))
        if key not in self._known:
            with negative_branch(base) if negative else nullcontext():
                if aesthetic is None or (negative and not aesthetic.config.negative):
                    encoded = base.encode_captions([prompt], text)
                else:
                    encoded = aesthetic.encode(base, prompt, text, away=negative)
            self._known[key] = encoded.to(base.device, base.dtype)
        return self._known[key]


def drawing_of(base: BaseModel, request: Request, encode: PromptEncoder) -> Drawing:
    """`request` must have its size (`with_size`). Its negative prompt is completed by learned
    negative words.
    """
    request = replace(request, negative=with_negative_words(request, base.added_tokens))
    sampler = base.process.sampler(
        request.sampler, num_steps=request.steps, strength=request.strength
    )
    num_steps = sampler.steps[-1] + 1
    prompts = prompt_per_step(extract_tags(request.prompt)[0], num_steps)
    negatives = prompt_per_step(extract_tags(request.negative)[0], num_steps)
    guided = request.guidance != 1
    text = TextConfig(clip_skip=request.clip_skip, emphasis=True)
    text = base.uncut([*set(prompts), *(set(negatives) if guided else ())], text)
    if request.edit is not None:
        text = _as_long_as(request.edit, text)
    sizes = torch.tensor(
        [[request.height, request.width, 0, 0, request.height, request.width]], device=base.device
    )

    def conditions(per_step: Sequence[str], *, negative: bool) -> tuple[Conditioning, ...]:
        zeros = negative and base.spec.zero_empty_negative
        unique = {
            prompt: _zero_if_empty(prompt, encode(prompt, text, negative=negative), zeros)
            for prompt in set(per_step)
        }
        complete = {prompt: base.with_sizes(value, sizes) for prompt, value in unique.items()}
        return tuple(complete[per_step[step]] for step in sampler.steps)

    positive = conditions(prompts, negative=False)
    if request.edit is not None:
        edited = {id(one): _edited(request, one) for one in positive}
        positive = tuple(edited[id(one)] for one in positive)
    return Drawing(
        request=request,
        positive=positive,
        negative=conditions(negatives, negative=True) if guided else None,
        init=None
        if request.init is None
        else init_to_pixels(request.init, request.width, request.height),
        mask=None
        if request.mask is None
        else mask_to_pixels(request.mask, request.width, request.height),
    )


def _as_long_as(edit: Edit, text: TextConfig) -> TextConfig:
    """Text of as many chunks as the edit was found with. Raises RecipeError where it needs more."""
    chunks = max(edit.found.states.shape[1] // (TOKENS_PER_CHUNK + 2), 1)
    if text.max_tokens > chunks * TOKENS_PER_CHUNK:
        raise RecipeError(
            f"the prompt or the negative prompt has more than {chunks * TOKENS_PER_CHUNK} tokens, "
            "and the edit was trained with so many. Shorten it."
        )
    return replace(text, max_tokens=chunks * TOKENS_PER_CHUNK)


def _edited(request: Request, target: Conditioning) -> Conditioning:
    """The state between the picture's own and the target's."""
    edit = request.edit
    assert edit is not None
    if edit.found.states.shape != target.states.shape:
        widths = [conditioning.states.shape[2] for conditioning in (edit.found, target)]
        raise ModelError(
            f"The edit's text states are {widths[0]} wide and this base's {widths[1]}: it was "
            "trained on another family of models."
        )
    if extract_tags(request.prompt)[0].strip() == edit.prompt.strip():
        own = edit.target.to(target.states.device, target.states.dtype)
        target = replace(target, states=own.states, pooled=own.pooled)
    return edit.between(target, request.eta)


def with_negative_words(request: Request, words: Collection[str]) -> str:
    """The negative prompt, with `X-neg` in front for each learned word X of the prompt that has
    such a half (DreamArtist) and that is not there already. Without guidance there is no negative
    prompt to complete.
    """
    if request.guidance == 1:
        return request.negative
    by_folded = {word.casefold(): word for word in words}
    used = {
        word.casefold(): word
        for _, word in find_words(extract_tags(request.prompt)[0], words)
        if word
    }
    halves = [by_folded[half] for word in used if (half := f"{word}{NEGATIVE}") in by_folded]
    written = {word for _, word in find_words(request.negative, words)}
    return ", ".join(
        filter(None, [*(half for half in halves if half not in written), request.negative])
    )


def _zero_if_empty(prompt: str, conditioning: Conditioning, zeros: bool) -> Conditioning:
    """`zeros`: the base was trained with zeros in place of an empty negative prompt, and this is
    one if empty.
    """
    if not zeros or prompt.strip():
        return conditioning
    pooled = None if conditioning.pooled is None else torch.zeros_like(conditioning.pooled)
    return replace(conditioning, states=torch.zeros_like(conditioning.states), pooled=pooled)


def with_size(base: BaseModel, request: Request) -> Request:
    """The request, checked, with width and height filled in. Raises RecipeError for one that
    cannot be drawn.
    """
    request.check()
    factor = base.size_step
    width, height = request.width, request.height
    if request.init is not None and not (width and height):
        own = request.init.size
        if width or height:  # The other side follows.
            scale = width / own[0] if width else height / own[1]
            own = (round(own[0] * scale), round(own[1] * scale))
            width, height = (
                given or max(round(side / factor), 1) * factor
                for given, side in zip((width, height), own)
            )
        else:
            width, height = fitted_size(own, base.resolution, factor)
    width, height = width or base.resolution, height or base.resolution
    for name, side in (("width", width), ("height", height)):
        if side < factor or side % factor:
            nearest = max(round(side / factor), 1) * factor
            raise RecipeError(
                f"{name} is {side}; it must be a multiple of {factor}. The nearest is {nearest}."
            )
    rescale = (
        base.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale
    )
    return replace(request, width=width, height=height, guidance_rescale=rescale)

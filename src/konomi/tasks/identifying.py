"""`identifiers`: rare single-token words, ranked by how little a base reacts to them (Ruiz et al.
2022, section 3.2).

A good identifier has no meaning to overcome. Candidates are the words of 3 to 5 Latin letters that
each tokenizer of the base has as one token. What the base makes of each is measured against the
prompt without it: the change of the text states, for all candidates; then, for those that change
them least, the change of the denoiser's prediction.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from konomi.config.sections import TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.errors import RecipeError
from konomi.models.base import BaseModel
from konomi.tasks.generating import load_base
from konomi.tasks.prior import is_ordinary
from konomi.tasks.word_lists import is_in_use, is_offensive
from konomi.training.events import Prepared

CANDIDATES = 1500
"""The rarest words of a vocabulary that are looked at; CLIP's has some 13,600 of that length."""
LEVELS = (0.25, 0.5, 0.75)
"""How far from the image to noise the timesteps are at which the denoiser is asked: details,
shapes, layout."""
_WORD = re.compile(r"[a-z]{3,5}</w>")


@dataclass(frozen=True, slots=True)
class Identifier:
    """A word and what the base makes of it. Reactions are relative: 0 none, 1 as large as what is
    changed.
    """

    word: str
    token: int
    """Its number in the first tokenizer: about the rank of its frequency."""
    text: float
    """Change of the text states against the prompt without the word."""
    denoiser: float
    """Change of the denoiser's prediction, mean over noise levels."""
    score: float
    """Geometric mean of both; the smaller, the less the word means to the base."""


def identifiers(
    base: str,
    *,
    class_noun: str = "",
    count: int = 20,
    prediction: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Prepared | tuple[Identifier, ...]]:
    """Words that can become the name of a subject. Yields progress, and at last the words, best
    first.

    base: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    class_noun: what the subject is in plain words, `dog`.
    count: how many words.
    prediction: what the base predicts (epsilon, v_prediction, sample), in place of what its file
        says.
    device: auto, cpu, cuda, mps, ...
    precision: number format of the computation: auto, fp32, fp16, bf16.

    The prompts are "a photo of a WORD NOUN" against "a photo of a NOUN", without a class noun "a
    photo of a WORD" against "a photo of a". Raises RecipeError for a base without such words.
    """
    if count < 1:
        raise RecipeError(f"--count is {count}; at least 1 is needed.")
    loaded = load_base(
        base, prediction=prediction, needs_vae=False, device=device, precision=precision
    )
    words = candidates(loaded)
    if not words:
        raise RecipeError(
            f"{base}: its tokenizer has no words of 3 to 5 letters that are one token."
        )
    neutral = f"a photo of a {class_noun}".strip()
    prompts = [f"a photo of a {word} {class_noun}".strip() for word in words]
    plain = _encode(loaded, [neutral])
    text = []
    for start in range(0, len(words), 32):
        states = _encode(loaded, prompts[start : start + 32]).states
        text += _change(states, plain.states)
        yield Prepared("text states", len(text), len(words))
    order = sorted(range(len(words)), key=text.__getitem__)[: 2 * count]
    reactions: list[float] = []
    for start in range(0, len(order), 8):
        some = order[start : start + 8]
        reactions += denoiser_reactions(loaded, [prompts[index] for index in some], plain)
        yield Prepared("predictions", len(reactions), len(order))
    table = next(iter(loaded.vocabularies().values()))
    found = [
        Identifier(
            words[index],
            table[f"{words[index]}</w>"],
            text[index],
            reaction,
            math.sqrt(text[index] * reaction),
        )
        for index, reaction in zip(order, reactions, strict=True)
    ]
    yield tuple(sorted(found, key=lambda one: one.score)[:count])


def candidates(base: BaseModel, limit: int = CANDIDATES) -> list[str]:
    """Words that are one token to every tokenizer of the base, the rarest `limit`; none that is in
    use or offends.

    The last merges of a byte-pair vocabulary are those of its rarest words.
    """
    tables = list(base.vocabularies().values())
    entries = [
        token
        for token in tables[0]
        if _WORD.fullmatch(token) and all(token in table for table in tables)
    ]
    words = []
    for token in sorted(entries, key=tables[0].__getitem__, reverse=True):
        word = token.removesuffix("</w>")
        if is_ordinary(word) or is_in_use(word) or is_offensive(word):
            continue
        # An entry need not be what the merges lead to.
        if all(len(pieces) == 1 for pieces in base.tokens(word).values()):
            words.append(word)
        if len(words) == limit:
            break
    return words


@torch.no_grad()
def denoiser_reactions(base: BaseModel, prompts: Sequence[str], plain: Conditioning) -> list[float]:
    """Relative change of the prediction for each prompt against `plain`, on the same noise, mean
    over `LEVELS`.

    Pictures of half the base's side: cheaper by four, and asked for a comparison only.
    """
    side = max(base.resolution // base.latent_factor // 2, 8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, base.latent_channels, side, side, generator=generator)
    image = torch.randn(1, base.latent_channels, 1, 1, generator=generator).expand_as(noise)
    told = _encode(base, prompts)
    changes = torch.zeros(len(prompts))
    process = base.process.to(base.device)
    for level in LEVELS:
        at = process.timesteps([process.timestep_at(level)], base.device)
        noisy = process.add_noise(image.to(base.device), noise.to(base.device), at)
        before = _predict(base, noisy, at, plain)
        after = _predict(
            base, noisy.expand(len(prompts), -1, -1, -1), at.expand(len(prompts)), told
        )
        changes += torch.tensor(_change(after, before)) / len(LEVELS)
    return [float(change) for change in changes]


def _predict(
    base: BaseModel, noisy: Tensor, timesteps_B: Tensor, conditioning: Conditioning
) -> Tensor:
    height, width = (base.latent_factor * side for side in noisy.shape[2:])
    sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(noisy), device=noisy.device)
    conditioning = base.with_sizes(conditioning, sizes)
    if base.inpainting:
        # Everything is to be drawn: mask 1, and nothing behind it.
        hole = torch.zeros(
            len(noisy), base.latent_channels + 1, *noisy.shape[2:], device=noisy.device
        )
        hole[:, 0] = 1
        conditioning = replace(conditioning, inpaint=hole)
    return base.predict(noisy, timesteps_B, conditioning).float()


@torch.no_grad()
def _encode(base: BaseModel, prompts: Sequence[str]) -> Conditioning:
    return base.encode_captions(prompts, TextConfig())


def _change(values: Tensor, reference: Tensor) -> list[float]:
    """|value - reference| / |reference| of each row."""
    difference = (values.float() - reference.float()).flatten(1).norm(dim=1)
    return [float(change) for change in difference / reference.float().norm()]

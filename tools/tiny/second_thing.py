"""Stage 3d: of two things in a caption, the second means what it means alone.

A causal text encoder that was only asked what a whole caption shows lets the first thing run into
the second. After stage 3c the state of "pizza" in "a cat next to a pizza" was nearer to that of
"cat" (cosine 0.62, means taken off) than to that of "pizza" in "a pizza" (0.54), and the denoiser
drew the right thing in the right half of one pair in ten, in the left half of four. Here the
encoder learns to say at the second thing's tokens what it says of the thing alone, and by how much,
the same for all things, a second differs from a first; everywhere else it has to stay what it was
(learning without forgetting, Li and Hoiem 2016). Captions alone are needed. B captions, T tokens,
N tokens of a thing, W width of a state.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tools.tiny.captions import caption, with_article
from tools.tiny.clip import ClipModel, tokenize
from tools.tiny.scenes import Sprites, describe
from tools.tiny.stage import Progress, Work, seeds_of, train
from tools.tiny.text_encoder import LONG_SHARE, at_full_length
from torch import Tensor, nn
from transformers import CLIPTokenizer

FIRST_SEED = 850_000_000
BATCH = 240
PEAK = 1e-3
PAIR_SHARE = 0.6
PAIRS_FOR_OFFSET = 2000


@dataclass(frozen=True, slots=True)
class NamedCaption:
    """A caption, and the names of the things in it."""

    words: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Second:
    """Where the second thing of a caption is named, and its states there if it were alone."""

    row: int
    where: slice
    """Its tokens."""
    alone_NW: Tensor


class States(nn.Module):
    """Captions as the denoiser reads them."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens_BT: Tensor) -> Tensor:
        states: Tensor = self.text(input_ids=tokens_BT).last_hidden_state
        return states.float()


def find(row: list[int], wanted: list[int], start: int = 0) -> int:
    """Where `wanted` begins in `row`, from `start` on; -1 where it does not come."""
    places = range(start, len(row) - len(wanted) + 1)
    return next((place for place in places if row[place : place + len(wanted)] == wanted), -1)


class SecondThings:
    """Looks up second things in captions. `old` is the encoder as it was."""

    def __init__(self, old: States, sprites: Sprites, tokenizer: CLIPTokenizer) -> None:
        self.ids = {name: tokenizer(name).input_ids[1:-1] for name in sprites.names}
        self.alone: dict[str, Tensor] = {}
        for start in range(0, len(sprites.names), 256):
            names = sprites.names[start : start + 256]
            tokens = tokenize(tokenizer, [with_article(name) for name in names], "cpu")
            with torch.no_grad():
                states = old(tokens)
            for name, row, found in zip(names, tokens.tolist(), states, strict=True):
                first = find(row, self.ids[name])
                self.alone[name] = found[first : first + len(self.ids[name])].clone()

    def of(self, captions: Sequence[NamedCaption], tokens_BT: Tensor) -> list[Second]:
        found = []
        for number, (named, row) in enumerate(zip(captions, tokens_BT.tolist(), strict=True)):
            if len(named.names) < 2:
                continue
            one, other = named.names
            start = find(row, self.ids[one])
            place = find(row, self.ids[other], start + len(self.ids[one])) if start >= 0 else -1
            if place >= 0:
                alone = self.alone[other]
                found.append(Second(number, slice(place, place + len(alone)), alone))
        return found


def offset(
    old: States, things: SecondThings, captions: Sequence[NamedCaption], tokens_BT: Tensor
) -> Tensor:
    """[W]: by how much second things differ from the same alone, in the mean."""
    with torch.no_grad():
        states = torch.cat([old(part) for part in tokens_BT.split(256)])
    return torch.cat(
        [states[s.row, s.where] - s.alone_NW for s in things.of(captions, tokens_BT)]
    ).mean(0)


def train_second_thing(
    work: Work,
    clip_model: ClipModel,
    sprites: Sprites,
    known: Sprites,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    batch: int = BATCH,
) -> ClipModel:
    """By turns of all things and of those that the denoiser learns. On the CPU, wherever the rest
    runs.
    """
    clip_model = clip_model.cpu().eval()
    clip_model.text.set_attn_implementation("eager")
    old = States(copy.deepcopy(clip_model.text)).requires_grad_(False)
    new = States(clip_model.text).requires_grad_(True)
    things = SecondThings(old, sprites, tokenizer)

    def told_at(seed: int, share: float) -> NamedCaption:
        source = (sprites, known)[seed % 2]
        scene = describe(source, seed, pair_share=share)
        return NamedCaption(
            caption(source, scene, 0), tuple(source.all[item.sprite].name for item in scene.items)
        )

    def tokens_of(captions: Sequence[NamedCaption]) -> Tensor:
        return tokenize(tokenizer, [named.words for named in captions], "cpu")

    pairs = [told_at(FIRST_SEED - 1 - n, 1.0) for n in range(PAIRS_FOR_OFFSET)]
    second_W = offset(old, things, pairs, tokens_of(pairs))
    optimizer = torch.optim.AdamW(new.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.0)

    def loss_at(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((step, 0x2D))
        captions = [told_at(seed, PAIR_SHARE) for seed in seeds_of(step, batch, FIRST_SEED)]
        tokens = tokens_of(captions)
        if rng.random() < LONG_SHARE:
            tokens = at_full_length(tokens)
        with work.autocast():
            with torch.no_grad():
                wanted = old(tokens)
            states = new(tokens)
        is_second = torch.zeros(tokens.shape, dtype=torch.bool)
        for thing in things.of(captions, tokens):
            wanted[thing.row, thing.where] = thing.alone_NW + second_W
            is_second[thing.row, thing.where] = True
        wrong = (states - wanted).square().mean(2)
        second, kept = wrong[is_second].mean(), wrong[~is_second].mean()
        return second + kept, f"second {second:.4f} kept {kept:.4f}"

    progress = Progress(work.folder / "second-thing", new, optimizer, decay=0.99)
    train(progress, loss_at, steps=steps, peak=PEAK, warmup=50)
    return clip_model.to(work.device)

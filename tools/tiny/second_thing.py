"""Stage 3d: of two things in a caption, the second means what it means alone.

A causal text tower that was only asked what a whole caption shows lets the first thing run into the second. After
stage 3c the state of "pizza" in "a cat next to a pizza" was nearer to that of "cat" (cosine 0.62, means taken off) than
to that of "pizza" in "a pizza" (0.54), and the denoiser drew the right thing in the right half of one pair in ten, in
the left half of four. Here the tower learns to say at the second thing's tokens what it says of the thing alone, and by
how much, the same for all things, a second differs from a first; everywhere else it has to stay what it was (learning
without forgetting, Li and Hoiem 2016). Captions alone are needed. B captions, T tokens, N tokens of a thing, W width of
a state.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from tools.tiny.captions import caption, with_article
from tools.tiny.clip import Towers, tokenize
from tools.tiny.scenes import Scene, Sprites, describe
from tools.tiny.stage import Progress, Work, seeds_of, train
from tools.tiny.text_tower import LONG_SHARE
from tools.tiny.tokenizer import VOCABULARY
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

FIRST_SEED = 850_000_000
BATCH = 240
PEAK = 1e-3
PAIR_SHARE = 0.6
PAIRS_FOR_OFFSET = 2000


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
    """Looks up second things in captions. `old` is the tower as it was."""

    def __init__(self, old: States, sprites: Sprites, tokenizer: CLIPTokenizer) -> None:
        self.sprites = sprites
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

    def of(self, scenes: list[Scene], tokens_BT: Tensor) -> list[Second]:
        found = []
        for number, (scene, row) in enumerate(zip(scenes, tokens_BT.tolist(), strict=True)):
            if len(scene.items) < 2:
                continue
            one, other = (self.sprites.all[item.sprite].name for item in scene.items)
            start = find(row, self.ids[one])
            place = find(row, self.ids[other], start + len(self.ids[one])) if start >= 0 else -1
            if place >= 0:
                alone = self.alone[other]
                found.append(Second(number, slice(place, place + len(alone)), alone))
        return found


def offset(old: States, things: SecondThings, scenes: list[Scene], tokens_BT: Tensor) -> Tensor:
    """[W]: by how much second things differ from the same alone, in the mean."""
    with torch.no_grad():
        states = torch.cat([old(part) for part in tokens_BT.split(256)])
    return torch.cat([states[s.row, s.where] - s.alone_NW for s in things.of(scenes, tokens_BT)]).mean(0)


def train_second_thing(
    work: Work,
    towers: Towers,
    sprites: Sprites,
    known: Sprites,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    batch: int = BATCH,
) -> Towers:
    """By turns of all things and of those that the denoiser learns. On the CPU, wherever the rest runs."""
    towers = towers.cpu().eval()
    towers.text.set_attn_implementation("eager")
    old = States(copy.deepcopy(towers.text)).requires_grad_(False)
    new = States(towers.text).requires_grad_(True)
    numbers = {(sprite.name, sprite.style): n for n, sprite in enumerate(sprites.all)}
    things = SecondThings(old, sprites, tokenizer)

    def scene_at(seed: int, share: float) -> Scene:
        source = (sprites, known)[seed % 2]
        scene = describe(source, seed, pair_share=share)
        drawn = [source.all[item.sprite] for item in scene.items]
        items = [replace(i, sprite=numbers[d.name, d.style]) for i, d in zip(scene.items, drawn, strict=True)]
        return replace(scene, items=tuple(items))

    pairs = [scene_at(FIRST_SEED - 1 - n, 1.0) for n in range(PAIRS_FOR_OFFSET)]
    second_W = offset(old, things, pairs, tokenize(tokenizer, [caption(sprites, s, 0) for s in pairs], "cpu"))
    optimizer = torch.optim.AdamW(new.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.0)

    def loss_at(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((step, 0x2D))
        scenes = [scene_at(seed, PAIR_SHARE) for seed in seeds_of(step, batch, FIRST_SEED)]
        tokens = tokenize(tokenizer, [caption(sprites, scene, 0) for scene in scenes], "cpu")
        if rng.random() < LONG_SHARE:
            tokens = F.pad(tokens, (0, 77 - tokens.shape[1]), value=VOCABULARY - 1)
        with work.autocast():
            with torch.no_grad():
                wanted = old(tokens)
            states = new(tokens)
        is_second = torch.zeros(tokens.shape, dtype=torch.bool)
        for thing in things.of(scenes, tokens):
            wanted[thing.row, thing.where] = thing.alone_NW + second_W
            is_second[thing.row, thing.where] = True
        wrong = (states - wanted).square().mean(2)
        second, kept = wrong[is_second].mean(), wrong[~is_second].mean()
        return second + kept, f"second {second:.4f} kept {kept:.4f}"

    progress = Progress(work.folder / "second-thing", new, optimizer, decay=0.99)
    train(progress, loss_at, steps=steps, peak=PEAK, warmup=50)
    return towers.to(work.device)

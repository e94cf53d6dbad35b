"""Stage 3b: the image encoder learns on, against the finished text encoder (locked text, as in LiT,
Zhai et al. 2022).

The text encoder is the text encoder that the denoiser reads, so it stays; the image encoder and the
text projection, which only measuring reads, learn to tell each scene's concept from all others,
its style and colour from all others, and its caption from the rest of the batch; while training
only, also which of all drawings it is. B batch, N concepts, S styles, C colours, K drawings, D
projection width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tools.tiny.captions import caption, with_article
from tools.tiny.clip import WIDTH_SHARED, ClipModel, tokenize
from tools.tiny.norm import use_fast_group_norm
from tools.tiny.scenes import COLOURS, SIDE, STYLES, Scene, Sprites, describe, render
from tools.tiny.stage import Progress, Work, seeds_of, train
from tools.tiny.vae import to_tensor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

FIRST_SEED = 600_000_000
BATCH = 128
ROUND = 500
"""Batches of scenes that are composed once and kept in memory (3 GiB); then they come again.
Composing a scene costs as much as looking at it."""
SHIFT = 6
"""Pixels by which a scene that comes again may be moved either way."""
PEAK = 2e-3
DRAWING_SCALE = 16
BLURRED = 0.3
"""Share of pictures that were smaller first: halves of pairs are, and what a denoiser draws is
never quite sharp."""


class TrainedImageEncoder(nn.Module):
    """What learns here."""

    def __init__(self, clip_model: ClipModel, drawings: int) -> None:
        super().__init__()
        self.image = clip_model.image
        self.project = clip_model.text.text_projection
        self.log_scale = clip_model.log_scale
        torch.manual_seed(19)
        self.drawings = nn.Parameter(F.normalize(torch.randn(drawings, WIDTH_SHARED), dim=1))


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch of scenes: uint8 pictures [B, H, W, 3], labels [B, 4], pooled states of the captions
    [B, W].
    """

    pictures: np.ndarray
    labels_B4: Tensor
    captions_BW: Tensor


def compose(
    clip_model: ClipModel,
    sprites: Sprites,
    tokenizer: CLIPTokenizer,
    seeds: range,
    numbers: dict[str, int],
    device: str,
) -> Lesson:
    scenes = [describe(sprites, seed, pair_share=0.0) for seed in seeds]
    captions = pooled_texts(clip_model, tokenizer, [caption(sprites, s, 0) for s in scenes], device)
    labels = torch.tensor([label(sprites, s, numbers) for s in scenes], device=device)
    return Lesson(np.stack([render(sprites, s) for s in scenes]), labels, captions)


def seen_again(lesson: Lesson, rng: np.random.Generator, device: str) -> Tensor:
    """Pixels [B, 3, H, W] from -1 to 1: the scenes a little moved, some of them blurred."""
    move = tuple(int(n) for n in rng.integers(-SHIFT, SHIFT + 1, 2))
    return blurred(to_tensor(list(np.roll(lesson.pictures, move, (1, 2))), device), rng)


@torch.no_grad()
def pooled_texts(
    clip_model: ClipModel, tokenizer: CLIPTokenizer, texts: list[str], device: str
) -> Tensor:
    """The text encoder's pooled states before the projection [N, 192]."""
    found = []
    for start in range(0, len(texts), 256):
        ids = tokenize(tokenizer, texts[start : start + 256], device)
        found.append(clip_model.text.text_model(input_ids=ids).pooler_output.float())
    return torch.cat(found)


def name_states(
    clip_model: ClipModel, tokenizer: CLIPTokenizer, sprites: Sprites, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled states of "a cat" [N, W], "a cat, noto style" [S, N, W], and with a background colour
    [S, C, N, W].
    """
    names = [with_article(name) for name in sprites.names]
    bare = pooled_texts(clip_model, tokenizer, names, device)
    styled = [
        pooled_texts(clip_model, tokenizer, [f"{n}, {s} style" for n in names], device)
        for s in STYLES
    ]
    coloured = [
        torch.stack(
            [
                pooled_texts(
                    clip_model,
                    tokenizer,
                    [f"{n}, {s} style, on a {c} background" for n in names],
                    device,
                )
                for c in COLOURS
            ]
        )
        for s in STYLES
    ]
    return bare, torch.stack(styled), torch.stack(coloured)


def image_encoder_loss(
    trained: TrainedImageEncoder,
    image: Tensor,
    labels_B4: Tensor,
    captions_BW: Tensor,
    states: tuple[Tensor, Tensor, Tensor],
    form: int,
) -> tuple[Tensor, Tensor]:
    """(loss, share of scenes whose concept is the nearest of all), of image features [B, D].

    `form` says which wording of names is asked.
    """
    concept, style, colour, drawing = labels_B4.unbind(1)
    scale = trained.log_scale.clamp(max=4.6).exp()

    def project(pooled: Tensor) -> Tensor:
        return F.normalize(trained.project(pooled).float(), dim=-1)

    bare, styled, coloured = states
    if form == 0:
        logits = image @ project(bare).T
    elif form == 1:
        logits = torch.einsum("bd,snd->bsn", image, project(styled))[
            torch.arange(len(image)), style
        ]
    else:
        # One style and colour a step for the whole batch's question would not fit its scenes: ask
        # each its own.
        pairs, own = torch.unique(style * len(COLOURS) + colour, return_inverse=True)
        asked = project(coloured.flatten(0, 1)[pairs])
        logits = torch.einsum("bd,pnd->bpn", image, asked)[torch.arange(len(image)), own]
    naming = F.cross_entropy(scale * logits, concept)
    manner = project(coloured[:, :, concept].permute(2, 0, 1, 3)).flatten(1, 2)
    manners = F.cross_entropy(
        scale * torch.einsum("bd,bmd->bm", image, manner), style * len(COLOURS) + colour
    )
    told = scale * project(captions_BW) @ image.T
    order = torch.arange(len(image), device=image.device)
    contrast = (F.cross_entropy(told, order) + F.cross_entropy(told.T, order)) / 2
    hits = (logits.argmax(1) == concept).float().mean()
    which = F.cross_entropy(DRAWING_SCALE * image @ F.normalize(trained.drawings, dim=1).T, drawing)
    return naming + 0.5 * manners + 0.5 * contrast + which, hits


def train_image_encoder(
    work: Work, clip_model: ClipModel, sprites: Sprites, tokenizer: CLIPTokenizer, *, steps: int
) -> ClipModel:
    clip_model = clip_model.to(work.device)
    numbers = {name: n for n, name in enumerate(sprites.names)}
    clip_model.text.text_model.requires_grad_(False)
    states = name_states(clip_model, tokenizer, sprites, work.device)
    trained = TrainedImageEncoder(clip_model, len(sprites.all))
    if work.device == "cpu":
        use_fast_group_norm(trained)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=PEAK, weight_decay=0.05, betas=(0.9, 0.98)
    )
    known: dict[int, Lesson] = {}

    def loss_at(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((step, 0xE7E))
        number = step % ROUND
        if number not in known:
            known[number] = compose(
                clip_model,
                sprites,
                tokenizer,
                seeds_of(number, BATCH, FIRST_SEED),
                numbers,
                work.device,
            )
        lesson = known[number]
        pixels = seen_again(lesson, rng, work.device)
        with work.autocast():
            image = trained.image(pixels)
            form = int(rng.choice(3, p=(0.4, 0.54, 0.06)))
            loss, hits = image_encoder_loss(
                trained, image, lesson.labels_B4, lesson.captions_BW, states, form
            )
        return loss, f"loss {loss.item():.3f} top-1 {hits.item():.2f}"

    progress = Progress(work.folder / "image-tower", trained, optimizer, decay=0.998)
    train(progress, loss_at, steps=steps, peak=PEAK, warmup=100)
    return clip_model


def label(sprites: Sprites, scene: Scene, numbers: dict[str, int]) -> list[int]:
    """Concept, style, colour, drawing."""
    drawing = scene.items[0].sprite
    number = numbers[sprites.all[drawing].name]
    return [
        number,
        STYLES.index(scene.style),
        list(COLOURS).index(scene.background.colour),
        drawing,
    ]


def blurred(pixels_B3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Some pictures made small and large again."""
    count = round(BLURRED * len(pixels_B3HW))
    if count:
        side = int(rng.integers(40, 96))
        small = F.interpolate(pixels_B3HW[:count], size=(side, side), mode="area")
        large = F.interpolate(small, size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1)
        pixels_B3HW = torch.cat([large, pixels_B3HW[count:]])
    return pixels_B3HW

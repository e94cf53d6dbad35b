"""Stage 3c: the text encoder learns on, against the finished image encoder (locked image, Zhai et
al. 2022).

Stage 3 leaves a text encoder whose states say which thing is meant and next to nothing of the rest:
between "a cat, noto style" and "a cat, blob style" they differ by a twentieth of what parts two
names, and a denoiser that reads them never learned styles or pairs. Here a caption has to be told
from the same scene in the other styles, and its states have to say what the scene looks like: from
the end token on, a fixed half of each state is drawn to the main components of the picture made
small. What an ideal denoiser predicts from pure noise, the mean of all pictures with this caption,
the text encoder then knows already. At last the projection, which only measuring reads, is fitted
again to names without a background. B batch, T tokens, W width of a state, K components, D
projection width, M scenes, N names, S styles.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tools.tiny.captions import caption, with_article
from tools.tiny.clip import WIDTH_TEXT, ClipModel, tokenize
from tools.tiny.image_encoder import pooled_texts
from tools.tiny.scenes import STYLES, Scene, Sprites, describe, render
from tools.tiny.stage import Progress, Work, train
from tools.tiny.style import image_features
from tools.tiny.tokenizer import VOCABULARY
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

FIRST_SEED = 800_000_000
BATCH = 240
PEAK = 1e-3
PAIR_SHARE = 0.35
SMALL = 16
"""Pixels of a side of the small pictures."""
COMPONENTS = 96
FLATTEN = -0.25
"""Components are scaled by this power of their variance: background colour alone has half of all
variance."""
LOOKS_WEIGHT = 3.0
DRAWING_SCALE = 16
PROJECTION_RATE = 2e-3
BLUR = 0.02
"""Noise on image features while the projection is fitted: what a denoiser draws is never quite a
real drawing."""
LONG_SHARE = 0.15
"""Steps with all 77 positions, as the denoiser reads them; the others end with the longest
caption."""


@dataclass(frozen=True, slots=True)
class Bank:
    """Scenes composed once, as families: the same scene in every style that has its things."""

    scenes: tuple[Scene, ...]
    family: Tensor
    """[M]: which scenes belong together; they follow each other."""
    features_MD: Tensor
    looks_MK: Tensor


def families(sprites: Sprites, known: Sprites, count: int) -> list[list[Scene]]:
    """By turns of all things and of those that the denoiser learns. Scenes speak of `sprites`."""
    numbers = {(sprite.name, sprite.style): n for n, sprite in enumerate(sprites.all)}
    found = []
    for n in range(count):
        source = (sprites, known)[n % 2]
        scene = describe(source, FIRST_SEED + n, pair_share=PAIR_SHARE)
        names = [source.all[item.sprite].name for item in scene.items]
        family = []
        for style in STYLES:
            if all((name, style) in numbers for name in names):
                items = [
                    replace(i, sprite=numbers[name, style])
                    for i, name in zip(scene.items, names, strict=True)
                ]
                family.append(replace(scene, items=tuple(items), style=style))
        found.append(family)
    return found


def compose(
    work: Work, clip_model: ClipModel, sprites: Sprites, known: Sprites, count: int
) -> Bank:
    """Some hundred scenes a second; kept on disk."""
    together = families(sprites, known, count)
    scenes = tuple(scene for family in together for scene in family)
    family = torch.tensor([n for n, members in enumerate(together) for _ in members])
    path = work.folder / f"text-tower-scenes-{count}.safetensors"
    if not path.exists():
        features, small = [], []
        for start in range(0, len(scenes), 256):
            pictures = [render(sprites, scene) for scene in scenes[start : start + 256]]
            features.append(image_features(clip_model, pictures))
            small.append(made_small(pictures))
        work.folder.mkdir(parents=True, exist_ok=True)
        save_file({"features": torch.cat(features), "looks": components(torch.cat(small))}, path)
    kept = load_file(path)
    return Bank(scenes, family, kept["features"], kept["looks"])


def made_small(pictures: Sequence[np.ndarray]) -> Tensor:
    """[N, 3 * SMALL * SMALL] from -1 to 1."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.adaptive_avg_pool2d(pixels, SMALL).flatten(1)


def components(small: Tensor) -> Tensor:
    """The main components [N, K], flattened, with a mean square of one."""
    centred = small - small.mean(0)
    _, _, directions = torch.linalg.svd(centred[:20_000], full_matrices=False)
    found = centred @ directions[:COMPONENTS].T
    found = found * found.var(0) ** FLATTEN
    return found / found.square().mean().sqrt()


def readout(width: int = WIDTH_TEXT) -> Tensor:
    """Orthonormal rows [K, W], always the same."""
    generator = torch.Generator().manual_seed(23)
    return torch.linalg.qr(torch.randn(width, COMPONENTS, generator=generator))[0].T.contiguous()


class Reader(nn.Module):
    """What learns here, and how it is asked."""

    def __init__(self, clip_model: ClipModel) -> None:
        super().__init__()
        self.text = clip_model.text
        self.log_scale = clip_model.log_scale
        self.register_buffer("readout", readout())

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors [B, D], what the states say of looks [B, T, K], and where they have to [B,
        T].
        """
        out = self.text(input_ids=tokens_BT)
        looks = out.last_hidden_state.float() @ self.readout.T
        return F.normalize(out.text_embeds.float(), dim=1), looks, tokens_BT == VOCABULARY - 1


@dataclass(frozen=True, slots=True)
class Drawings:
    """The mean features of each drawing [N, D], of scenes that show nothing else; and of which
    concept it is [N].
    """

    means_ND: Tensor
    concept_N: Tensor
    number: dict[int, int]
    """Of a sprite, its row."""


def drawings_of(bank: Bank, sprites: Sprites) -> Drawings:
    rows: dict[int, list[int]] = defaultdict(list)
    for n, scene in enumerate(bank.scenes):
        if len(scene.items) == 1:
            rows[scene.items[0].sprite].append(n)
    means = torch.stack(
        [F.normalize(bank.features_MD[where].mean(0), dim=0) for where in rows.values()]
    )
    return Drawings(means, concepts_of(sprites, rows), {sprite: n for n, sprite in enumerate(rows)})


def concepts_of(sprites: Sprites, drawings: Iterable[int]) -> Tensor:
    """Of each drawing the number of its name."""
    numbers = {name: n for n, name in enumerate(sprites.names)}
    return torch.tensor([numbers[sprites.all[drawing].name] for drawing in drawings])


def contrast(
    text_BD: Tensor, image_BD: Tensor, family_B: Tensor, styled_B: Tensor, scale: Tensor
) -> Tensor:
    """Captions against pictures of the batch; a caption without a style fits all of its family."""
    logits = scale * text_BD @ image_BD.T
    own = torch.arange(len(text_BD))
    kin = (family_B[:, None] == family_B[None]) & (own[:, None] != own[None]) & ~styled_B[:, None]
    logits = logits.masked_fill(kin, -1e4)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def which_drawing(text_BD: Tensor, drawings: Drawings, row_B: Tensor, styled_B: Tensor) -> Tensor:
    """Captions of one thing against all drawings: its own, or without a style any of its
    concept.
    """
    shares = F.log_softmax(DRAWING_SCALE * text_BD @ drawings.means_ND.T, dim=1)
    same = drawings.concept_N[row_B][:, None] == drawings.concept_N[None]
    any_style = shares.masked_fill(~same, -1e4).logsumexp(1)
    return -torch.where(styled_B, shares.gather(1, row_B[:, None])[:, 0], any_style).mean()


def at_full_length(tokens_BT: Tensor) -> Tensor:
    """[B, 77]: as the denoiser reads captions."""
    return F.pad(tokens_BT, (0, 77 - tokens_BT.shape[1]), value=VOCABULARY - 1)


def train_text_encoder(
    work: Work,
    clip_model: ClipModel,
    sprites: Sprites,
    known: Sprites,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    count: int,
) -> ClipModel:
    """`count` families of scenes, each seen many times in other words. On the CPU, wherever the
    rest runs.
    """
    clip_model = clip_model.cpu().eval()
    bank = compose(work, clip_model, sprites, known, count)
    drawings = drawings_of(bank, sprites)
    clip_model.text.set_attn_implementation("eager")
    reader = Reader(clip_model)
    reader.requires_grad_(True)
    decayed = [p for p in reader.parameters() if p.dim() > 1]
    plain = [p for p in reader.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(0.9, 0.98),
    )
    starts = torch.searchsorted(bank.family, torch.arange(count + 1))

    def loss_at(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((step, 0x7E87))
        chosen = []
        while len(chosen) < BATCH:
            number = int(rng.integers(count))
            chosen += range(int(starts[number]), int(starts[number + 1]))
        scenes = [bank.scenes[n] for n in chosen]
        variant = int(rng.integers(10**6))
        words = [caption(sprites, scene, variant) for scene in scenes]
        styled = torch.tensor([f"{s.style} style" in w for s, w in zip(scenes, words, strict=True)])
        tokens = tokenize(tokenizer, words, "cpu")
        if rng.random() < LONG_SHARE:
            tokens = at_full_length(tokens)
        with work.autocast():
            text, looks, told = reader(tokens)
        scale = reader.log_scale.clamp(max=4.6).exp()
        apart = contrast(text, bank.features_MD[chosen], bank.family[chosen], styled, scale)
        one = torch.tensor([len(scene.items) == 1 for scene in scenes])
        rows = torch.tensor(
            [drawings.number[scene.items[0].sprite] for scene in scenes if len(scene.items) == 1]
        )
        which = which_drawing(text[one], drawings, rows, styled[one])
        wrong = (looks - bank.looks_MK[chosen][:, None]).square().mean(2)
        look = (wrong * told).sum() / told.sum()
        return (
            apart + which + LOOKS_WEIGHT * look,
            f"apart {apart:.3f} which {which:.3f} looks {look:.3f}",
        )

    progress = Progress(work.folder / "text-tower", reader, optimizer, decay=0.998)
    train(progress, loss_at, steps=steps, peak=PEAK, warmup=100)
    fit_projection(clip_model, sprites, tokenizer, bank)
    return clip_model.to(work.device)


def fit_projection(
    clip_model: ClipModel,
    sprites: Sprites,
    tokenizer: CLIPTokenizer,
    bank: Bank,
    *,
    steps: int = 600,
    batch: int = 512,
) -> None:
    """From finished states and features; half a minute. Scenes are told by name, by style, and by
    caption.
    """
    alone = [n for n, scene in enumerate(bank.scenes) if len(scene.items) == 1]
    scenes, features_MD = [bank.scenes[n] for n in alone], bank.features_MD[alone]
    names = [with_article(name) for name in sprites.names]

    def pooled(texts: list[str]) -> Tensor:
        return pooled_texts(clip_model, tokenizer, texts, "cpu")

    bare_NW = pooled(names)
    styled_SNW = torch.stack(
        [pooled([f"{name}, {style} style" for name in names]) for style in STYLES]
    )
    captions_MW = pooled([caption(sprites, scene, 0) for scene in scenes])
    concept_M = concepts_of(sprites, [scene.items[0].sprite for scene in scenes])
    style_M = torch.tensor([STYLES.index(scene.style) for scene in scenes])
    scale = clip_model.log_scale.detach().clamp(max=4.6).exp()
    weight = clip_model.text.text_projection.weight
    optimizer = torch.optim.Adam([weight], lr=PROJECTION_RATE)
    generator = torch.Generator().manual_seed(29)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PROJECTION_RATE * (1 - step / steps)
        chosen = torch.randperm(len(scenes), generator=generator)[:batch]
        rows = torch.arange(len(chosen))
        noise = BLUR * torch.randn(len(chosen), features_MD.shape[1], generator=generator)
        seen_BD = F.normalize(features_MD[chosen] + noise, dim=1)
        told = [
            F.normalize(states @ weight.T, dim=-1)
            for states in (bare_NW, styled_SNW, captions_MW[chosen])
        ]
        concept, style = concept_M[chosen], style_M[chosen]
        alike_BSN = scale * torch.einsum("bd,snd->bsn", seen_BD, told[1])
        by_caption = scale * told[2] @ seen_BD.T
        loss = F.cross_entropy(alike_BSN[rows, style], concept) + F.cross_entropy(
            alike_BSN[rows, :, concept], style
        )
        loss = loss + 0.5 * F.cross_entropy(scale * seen_BD @ told[0].T, concept)
        loss = loss + (F.cross_entropy(by_caption, rows) + F.cross_entropy(by_caption.T, rows)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

"""Stage 3: text encoder (the text encoder of `tiny`) and image encoder, trained together on
captions and their scenes.

Contrastive loss (Radford et al. 2021) plus, while training only, one learned direction per
concept, style and background colour that both encoders are drawn to (proxies, Movshovitz-Attias et
al. 2017): batches that a CPU can hold have too few negatives to tell 1,489 concepts apart. B
batch, D projection width.
"""

import numpy as np
import torch
from tools.tiny.captions import background_words, caption
from tools.tiny.norm import use_fast_group_norm
from tools.tiny.scenes import COLOURS, STYLES, Scene, Sprites, describe, render
from tools.tiny.stage import Progress, Work, seeds_of, train
from tools.tiny.tokenizer import VOCABULARY
from tools.tiny.vae import to_tensor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from konomi.models.residual_image_encoder import WIDTHS, ResidualImageEncoder

FIRST_SEED = 200_000_000
BATCH = 128
PEAK = 1.5e-3
WIDTH_TEXT, WIDTH_SHARED = 192, 128


class ImageEncoder(nn.Module):
    """The network and its projection into the shared space."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = ResidualImageEncoder()
        self.visual_projection = nn.Linear(WIDTHS[-1], WIDTH_SHARED, bias=False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Unit vectors [B, D]."""
        pooled = self.vision_model(
            pixels_B3HW.contiguous(memory_format=torch.channels_last)
        ).pooler_output
        return F.normalize(self.visual_projection(pooled).float(), dim=1)


class ClipModel(nn.Module):
    """Both towers, the temperature and the proxies."""

    def __init__(self, concepts: int, seed: int = 13) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.text = CLIPTextModelWithProjection(text_config())
        self.image = ImageEncoder().to(memory_format=torch.channels_last)
        self.log_scale = nn.Parameter(torch.tensor(2.7))
        self.concepts = nn.Parameter(F.normalize(torch.randn(concepts, WIDTH_SHARED), dim=1))
        self.styles = nn.Linear(WIDTH_SHARED, len(STYLES))
        self.colours = nn.Linear(WIDTH_SHARED, len(COLOURS))

    def forward(self, tokens: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, D] of texts and pictures."""
        text = self.text(input_ids=tokens).text_embeds.float()
        return F.normalize(text, dim=1), self.image(pixels)


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH_TEXT, intermediate_size=4 * WIDTH_TEXT,
        num_hidden_layers=3,
        num_attention_heads=WIDTH_TEXT // 64, max_position_embeddings=77, hidden_act="quick_gelu",
        projection_dim=WIDTH_SHARED, bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )  # fmt: skip


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], device: str) -> Tensor:
    """Ids padded to the longest: the text encoder is causal, so what follows the end token does not
    matter.
    """
    rows = [
        ids[:76] + [VOCABULARY - 1] if len(ids) > 77 else ids
        for ids in tokenizer(captions).input_ids
    ]
    longest = max(len(row) for row in rows)
    return torch.tensor(
        [row + [VOCABULARY - 1] * (longest - len(row)) for row in rows], device=device
    )


def clip_loss(
    clip_model: ClipModel, tokens: Tensor, pixels: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss, share of captions whose own picture is nearest). `labels` [B, 4]: concept, style,
    colour, said (bits).
    """
    text, image = clip_model(tokens, pixels)
    scale = clip_model.log_scale.clamp(max=4.6).exp()
    logits = scale * text @ image.T
    own = torch.arange(len(text), device=text.device)
    contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    proxies = F.normalize(clip_model.concepts, dim=1).T
    concept, style, colour, said = labels.unbind(1)
    guide = F.cross_entropy(16 * image @ proxies, concept, label_smoothing=0.05)
    guide = guide + F.cross_entropy(16 * text @ proxies, concept, label_smoothing=0.05)
    for head, target, bit in ((clip_model.styles, style, 1), (clip_model.colours, colour, 2)):
        guide = guide + 0.3 * F.cross_entropy(8 * head(image), target)
        mentioned = (said & bit) > 0
        if mentioned.any():
            guide = guide + 0.3 * F.cross_entropy(8 * head(text[mentioned]), target[mentioned])
    return contrast + 0.5 * guide, (logits.argmax(1) == own).float().mean()


def label(
    sprites: Sprites, scene: Scene, words: str, numbers: dict[str, int], rng: np.random.Generator
) -> list[int]:
    """Concept (one of two at random), style, colour, and which of style (1) and colour (2) the
    caption names.
    """
    item = scene.items[int(rng.integers(len(scene.items)))]
    said = int(f"{scene.style} style" in words) + 2 * int(
        background_words(scene.background) in words
    )
    concept = numbers[sprites.all[item.sprite].name]
    return [concept, STYLES.index(scene.style), list(COLOURS).index(scene.background.colour), said]


def train_clip(work: Work, sprites: Sprites, tokenizer: CLIPTokenizer, *, steps: int) -> ClipModel:
    numbers = {name: n for n, name in enumerate(sprites.names)}
    clip_model = ClipModel(len(numbers)).to(work.device)
    if work.device == "cpu":
        # The fused attention's backward pass in bfloat16 takes a third of the step on the CPU;
        # plain products do not.
        clip_model.text.set_attn_implementation("eager")
        use_fast_group_norm(clip_model.image)
    decayed = [p for p in clip_model.parameters() if p.dim() > 1]
    plain = [p for p in clip_model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(0.9, 0.98),
    )

    def loss_at(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((step, 0xC11B))
        scenes = [describe(sprites, seed) for seed in seeds_of(step, BATCH, FIRST_SEED)]
        words = [caption(sprites, scene, 0) for scene in scenes]
        labels = torch.tensor(
            [label(sprites, s, w, numbers, rng) for s, w in zip(scenes, words)], device=work.device
        )
        pixels = to_tensor([render(sprites, scene) for scene in scenes], work.device)
        with work.autocast():
            loss, hits = clip_loss(
                clip_model, tokenize(tokenizer, words, work.device), pixels, labels
            )
        return loss, f"loss {loss.item():.3f} top-1 {hits.item():.2f}"

    train(
        Progress(work.folder / "clip", clip_model, optimizer, decay=0.998),
        loss_at,
        steps=steps,
        peak=PEAK,
        warmup=200,
    )
    return clip_model


@torch.no_grad()
def retrieval(
    clip_model: ClipModel,
    sprites: Sprites,
    tokenizer: CLIPTokenizer,
    *,
    first_seed: int,
    rounds: int = 8,
    device: str = "cpu",
) -> float:
    """Share of captions nearest to their own scene among 64 new scenes of distinct single
    concepts.
    """
    hits = []
    seed = first_seed
    for _ in range(rounds):
        chosen: dict[str, Scene] = {}
        while len(chosen) < 64:
            scene = describe(sprites, seed, pair_share=0.0)
            seed += 1
            chosen.setdefault(sprites.all[scene.items[0].sprite].name, scene)
        words = [caption(sprites, scene, 0) for scene in chosen.values()]
        pixels = to_tensor([render(sprites, scene) for scene in chosen.values()], device)
        text, image = clip_model(tokenize(tokenizer, words, device), pixels)
        hits.append(((text @ image.T).argmax(1).cpu() == torch.arange(64)).float().mean().item())
    return float(np.mean(hits))

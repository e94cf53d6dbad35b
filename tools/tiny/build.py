"""One command that makes `tiny` from the emoji sprites.

    python -m tools.tiny.build --data ../shared/data --work ~/tiny-work --output
    src/konomi/builtin/tiny

Every stage resumes where it stopped. `--effort 8` trains eight times as long. `--continue N` takes
the packed folder and goes on with its denoiser, on the Nth lot of new scenes; everything else
stays.
"""

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tools.tiny import pack
from tools.tiny.clip import ClipModel, retrieval, train_clip
from tools.tiny.dataset import BAND, known_sprites, write_bands, write_mixture
from tools.tiny.denoiser import Schedule, denoiser_recipe, train_denoiser
from tools.tiny.image_encoder import ROUND, train_image_encoder
from tools.tiny.scenes import SIDE, Sprites, describe, load_sprites, render
from tools.tiny.second_thing import train_second_thing
from tools.tiny.stage import Work
from tools.tiny.text_encoder import train_text_encoder
from tools.tiny.tokenizer import write_tokenizer
from tools.tiny.unet import new_unet
from tools.tiny.vae import fold_scale, psnr, train_decoder, train_vae
from torch import nn
from transformers import CLIPTokenizer

from konomi.models.load import load_base

NEAR_SIDE = 96
EVALUATION_SEED = 900_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """Optimiser steps of each stage; seconds a step, measured on one core (AVX-512 with
    bfloat16).
    """

    clip: int = 700
    image: int = 4500
    text: int = 2000
    second: int = 600
    vae: int = 2200
    decoder: int = 1500
    scenes: int = 16_000
    near: int = 6000
    bands: int = 6000
    whole: int = 4000
    batch: int = 32

    def times(self, effort: float) -> "Plan":
        return replace(
            self,
            **{
                name: round(getattr(self, name) * effort)
                for name in self.__slots__
                if name != "batch"
            },
        )

    def minutes(self) -> dict[str, float]:
        """Of one core: what each stage needs."""
        return {
            "tokenizer": 0.3,
            "clip": self.clip * 0.9 / 60,
            "image encoder": self.image * 0.45 / 60,
            "text encoder": self.text * 0.55 / 60,
            "second thing": self.second * 0.6 / 60,
            "vae": self.vae * 0.55 / 60,
            "decoder": self.decoder * 0.45 / 60,
            "scenes": self.scenes * 3 * 0.017 / 60,
            "denoiser at 96": self.near * self.batch / 65 / 60,
            "denoiser on pairs": self.bands * self.batch / 64 / 60,
            "denoiser at 128": self.whole * self.batch / 42 / 60,
        }


GPU_SPEED = 40
"""How many times one core a data-centre GPU is taken to be: a guess, as small models leave it half
idle."""


STAYS = ("text encoder", "second thing")
"""Stages of the CPU."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny.build", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of emoji-noto.zip, -twemoji.zip, -blob.zip"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="checkpoints and scenes; outside the repository"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("src/konomi/builtin/tiny"), help="the packed model"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--effort", type=float, default=1.0, help="factor on all steps")
    parser.add_argument(
        "--continue",
        dest="lot",
        type=int,
        default=0,
        metavar="N",
        help="train the packed denoiser on",
    )
    parser.add_argument("--estimate", action="store_true", help="print how long it takes and stop")
    options = parser.parse_args(arguments)
    plan = Plan().times(options.effort)
    if options.estimate:
        print_estimate(plan, go_on=options.lot > 0)
        return
    work = Work(options.data, options.work, options.device)
    if options.lot:
        go_on_with(work, plan, options.output, options.lot)
    else:
        build(work, plan, options.output)


def print_estimate(plan: Plan, *, go_on: bool) -> None:
    """Minutes. Composing scenes and training the text encoder on stay on the CPU, wherever the rest
    runs.
    """
    drawn = {
        "clip": plan.clip * 128,
        "image encoder": min(plan.image, ROUND) * 128,
        "vae": plan.vae * 13,
        "decoder": plan.decoder * 13,
        "scenes": plan.scenes * 12,
    }
    rows = {
        k: v for k, v in plan.minutes().items() if not go_on or k == "scenes" or "denoiser" in k
    }
    on_gpu = {
        k: v if k in STAYS else max(v / GPU_SPEED, drawn.get(k, 0) * 0.0013 / 60)
        for k, v in rows.items()
    }
    print(f"{'':18}  one core (measured)   one core and a GPU (guessed)")
    for name in rows:
        print(f"{name:18} {rows[name]:10.1f} {on_gpu[name]:20.1f}")
    print(f"{'all, in minutes':18} {sum(rows.values()):10.1f} {sum(on_gpu.values()):20.1f}")


def build(work: Work, plan: Plan, output: Path) -> None:
    """All stages, each from its last checkpoint."""
    sprites = load_sprites(work.data)
    vocabulary = work.folder / "tokenizer"
    if not (vocabulary / "vocab.json").exists():
        write_tokenizer(sprites, vocabulary)
    tokenizer = CLIPTokenizer.from_pretrained(vocabulary)
    clip_model = train_clip(work, sprites, tokenizer, steps=plan.clip)
    clip_model = train_image_encoder(work, clip_model, sprites, tokenizer, steps=plan.image)
    known = known_sprites(work.data)
    clip_model = train_text_encoder(
        work, clip_model, sprites, known, tokenizer, steps=plan.text, count=max(200, 4 * plan.text)
    )
    clip_model = train_second_thing(
        work, clip_model, sprites, known, tokenizer, steps=plan.second
    ).eval()
    found = retrieval(
        clip_model, sprites, tokenizer, first_seed=EVALUATION_SEED, device=work.device
    )
    print(f"clip: own scene among 64: {found:.1%}")
    base = work.folder / "base"
    _pack_base(work, plan, sprites, clip_model, base)
    denoised = _train_denoiser(work, plan, base, lot=0)
    shutil.copytree(base, output, dirs_exist_ok=True)
    unet = new_unet()
    unet.load_state_dict(load_base(denoised).state("denoiser"))
    pack.pack_unet(unet, output)
    print(f"weights: {pack.weigh(output) / 2**20:.2f} MiB")


def _pack_base(work: Work, plan: Plan, sprites: Sprites, clip_model: ClipModel, base: Path) -> None:
    """VAE with folded scale and decoder trained on, CLIP, and a random denoiser: konomi starts
    there.
    """
    pictures = [render(sprites, describe(sprites, EVALUATION_SEED + n)) for n in range(200)]
    folded = work.folder / "vae-folded.safetensors"
    if folded.exists():
        vae = pack.load_vae(load_file(folded))
    else:
        vae = train_vae(work, sprites, steps=plan.vae).eval()
        fold_scale(vae, pictures, work.device)
        save_file({k: v.contiguous().cpu() for k, v in vae.state_dict().items()}, folded)
    vae.to(work.device, memory_format=torch.channels_last)
    train_decoder(work, vae.train(), sprites, steps=plan.decoder)
    restore_forward(vae)
    print(f"vae: {psnr(vae.eval(), pictures[:40], work.device):.2f} dB")
    pack.pack_vae(vae, base)
    pack.pack_clip(clip_model, base)
    pack.pack_unet(new_unet(), base)
    pack.pack_rest(work.folder / "tokenizer", base)


def restore_forward(model: nn.Module) -> None:
    """Undo `use_fast_group_norm`."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.__dict__.pop("forward", None)


def _train_denoiser(work: Work, plan: Plan, base: Path, *, lot: int) -> Path:
    """Three runs of konomi's method `full`: at 96 pixels, on pairs in half a picture, and, coming
    to rest, at 128.
    """
    sprites = known_sprites(work.data)
    scenes = work.folder / f"scenes-{lot}"
    near = write_mixture(sprites, scenes / "near", count=plan.scenes, side=NEAR_SIDE, lot=lot)
    bands = write_bands(sprites, scenes / "bands", count=plan.scenes, lot=lot)
    whole = write_mixture(sprites, scenes / "whole", count=plan.scenes, side=SIDE, lot=lot)
    runs: tuple[tuple[str, tuple[Path, ...], str, int, float, Schedule], ...] = (
        ("near", near, str(NEAR_SIDE), plan.near, 1e-3, "constant"),
        ("bands", bands, f"{SIDE}x{BAND}", plan.bands, 1e-3, "constant"),
        ("whole", whole, str(SIDE), plan.whole, 8e-4, "cosine"),
    )
    for number, (name, images, size, steps, rate, schedule) in enumerate(runs):
        base = train_denoiser(
            denoiser_recipe(
                base, images, work.folder / f"{name}-{lot}", work.folder / "cache", size=size,
                steps=steps,
                batch=plan.batch, rate=rate, schedule=schedule, seed=3 * lot + number,
                device=work.device,
            )
        )  # fmt: skip
    return base


def go_on_with(work: Work, plan: Plan, output: Path, lot: int) -> None:
    """More training of a packed model's denoiser."""
    base = work.folder / f"base-{lot}"
    if not base.exists():
        shutil.copytree(output, base)
    unet = new_unet()
    unet.load_state_dict(load_base(_train_denoiser(work, plan, base, lot=lot)).state("denoiser"))
    pack.pack_unet(unet, output)


if __name__ == "__main__":
    main()

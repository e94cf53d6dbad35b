"""How good is the embedded base `tiny`? Every figure of its model card, beside the bar it should
reach.

    OMP_NUM_THREADS=2 python -m bench.tiny --data ../shared/data
    python -m bench.tiny --data ../shared/data --only draw --grid grid.png

Bars are what minutes on a data-centre GPU reach; in brackets, what a training on a CPU must.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tools.tiny import pack, prompt_following
from tools.tiny.clip import ClipModel, retrieval
from tools.tiny.dataset import FAVOURITES, known_sprites
from tools.tiny.scenes import (
    STYLES,
    Scene,
    Sprites,
    describe,
    index_sprites,
    load_sprites,
    read_zip,
    render,
)
from tools.tiny.style import StyleJudge
from tools.tiny.teach import Outcome, lessons, teach
from tools.tiny.vae import psnr
from transformers import CLIPTokenizer

from konomi.models.load import load_base

EVALUATION_SEED = 950_000_000
NONSENSE = (
    "",
    "",
    "qwrt plmk zzx",
    "colorless green ideas sleep furiously",
    "blorf dwik",
    "7 ~ ^ ^ 9",
    "",
    "the of and",
)
CHOICES = ("vae", "clip", "draw", "speed", "teach")


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table."""

    name: str
    value: float
    form: str
    bar: float | None = None
    cpu_bar: float | None = None
    less_is_better: bool = False

    def __str__(self) -> str:
        bars = "" if self.bar is None else self.form.format(self.bar)
        bars += "" if self.cpu_bar is None else f" ({self.form.format(self.cpu_bar)})"
        return f"{self.name:66} {self.form.format(self.value):>8}   {bars:18} {self.verdict}"

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.reaches(self.bar):
            return "met"
        return "CPU bar met" if self.cpu_bar is not None and self.reaches(self.cpu_bar) else "open"

    def reaches(self, bar: float) -> bool:
        return self.value <= bar if self.less_is_better else self.value >= bar


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tiny", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the emoji archives")
    parser.add_argument("--model", type=Path, default=Path("src/konomi/builtin/tiny"))
    parser.add_argument(
        "--only", choices=CHOICES, action="append", help="these parts alone; may be repeated"
    )
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--concepts", type=int, default=30, help="novel concepts to teach")
    parser.add_argument(
        "--with-prior", type=int, default=30, help="how many of them also with prior preservation"
    )
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument(
        "--grid", type=Path, help="where to put 64 of the pictures; others beside it"
    )
    options = parser.parse_args()
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    wanted = options.only or CHOICES
    print(f"{'':66} {'measured':>8}   {'bar (on a CPU)':18}")
    for figure in figures(options, wanted):
        print(figure, flush=True)


def figures(options: argparse.Namespace, wanted: tuple[str, ...]) -> Iterator[Figure]:
    """The table's lines, as they are found."""
    everything = load_sprites(options.data)
    novel = index_sprites(
        [s for s in read_zip(options.data / "emoji-novel.zip") if s.style in STYLES]
    )
    clip_model = pack.load_clip_model(options.model).eval()
    tokenizer = CLIPTokenizer.from_pretrained(options.model / "tokenizer")
    yield Figure(
        "weights, MiB", pack.weigh(options.model) / 2**20, "{:.2f}", 24.0, less_is_better=True
    )
    if "vae" in wanted:
        scenes = [
            render(novel, describe(novel, EVALUATION_SEED + n, pair_share=0.0)) for n in range(40)
        ]
        vae = pack.load_vae(
            load_file(options.model / "vae" / "diffusion_pytorch_model.safetensors")
        )
        yield Figure("VAE, scenes with novel concepts, dB", psnr(vae, scenes), "{:.1f}", 27.0, 24.0)
    if "clip" in wanted:
        found = retrieval(clip_model, everything, tokenizer, first_seed=EVALUATION_SEED)
        yield Figure("CLIP, caption to its own scene among 64", found, "{:.1%}", 0.85, 0.6)
    if "draw" in wanted:
        yield from drawing_figures(options, everything, clip_model, tokenizer)
    if "speed" in wanted:
        yield from speed_figures(options.model)
    if "teach" in wanted:
        yield from teaching_figures(options, novel, clip_model)


def drawing_figures(
    options: argparse.Namespace,
    everything: Sprites,
    clip_model: ClipModel,
    tokenizer: CLIPTokenizer,
) -> Iterator[Figure]:
    """Concepts, colours, styles and pairs, of the things that the denoiser has learned; any name
    may be told.
    """
    base = load_base(options.model)
    sprites = known_sprites(options.data)
    finder = prompt_following.NameFinder(clip_model, tokenizer, sprites, everything.names)
    judge = StyleJudge(clip_model, sprites)

    def drawn(scenes: list[Scene]) -> list[np.ndarray]:
        prompts = [prompt_following.prompt_for(sprites, scene) for scene in scenes]
        return prompt_following.draw(base, prompts, guidance=options.guidance)

    scenes = prompt_following.single_scenes(sprites, options.captions)
    pictures = drawn(scenes)
    real = [render(sprites, scene) for scene in scenes]
    count = f"{len(scenes)} captions"
    found = finder.named(scenes, pictures)
    yield Figure(
        f"{count}: concept among the CLIP's first {prompt_following.TOP} of all names",
        found,
        "{:.1%}",
        0.6,
        0.25,
    )
    yield Figure("  the same on the real scenes", finder.named(scenes, real), "{:.1%}")
    yield Figure(
        "  background colour as named",
        prompt_following.coloured(scenes, pictures),
        "{:.1%}",
        0.9,
        0.85,
    )
    yield Figure("  style as named", judge.share_right(pictures, scenes), "{:.1%}", 0.8, 0.65)
    yield Figure("  the style judge on new real scenes", judge.accuracy_on_real(), "{:.1%}")
    favourites = prompt_following.single_scenes(sprites, options.pairs, only=FAVOURITES)
    liked = drawn(favourites)
    yield Figure(
        f"{len(favourites)} captions of favourites: concept",
        finder.named(favourites, liked),
        "{:.1%}",
    )
    pairs = prompt_following.pair_scenes(sprites, options.pairs)
    beside = drawn(pairs)
    found = finder.both_named(pairs, beside)
    yield Figure(
        f'{len(pairs)} pairs "X next to Y": both in their halves', found, "{:.1%}", 0.4, 0.1
    )
    real = [render(sprites, scene) for scene in pairs]
    yield Figure("  the same on the real scenes", finder.both_named(pairs, real), "{:.1%}")
    if options.grid:
        nonsense = prompt_following.draw(base, list(NONSENSE), guidance=options.guidance)
        for name, some in (
            ("", pictures[:64]),
            ("-favourites", liked),
            ("-pairs", beside),
            ("-nonsense", nonsense),
        ):
            prompt_following.save_grid(some, options.grid.with_stem(options.grid.stem + name))


def speed_figures(model: Path) -> Iterator[Figure]:
    """Loading, in a process of its own, and one picture after a first one."""
    code = (
        "import sys, time; from konomi.models.load import load_base; import torch; started = "
        "time.monotonic()\n"
        "base = load_base(sys.argv[1])\n"
        "base.denoiser, base.vae, list(base.text_encoders.values())\n"
        "print(time.monotonic() - started)"
    )
    times = [
        float(subprocess.check_output([sys.executable, "-c", code, str(model)])) for _ in range(3)
    ]
    yield Figure(
        "loading all parts, imports of torch apart, s",
        min(times),
        "{:.2f}",
        2.0,
        less_is_better=True,
    )
    base = load_base(model)
    prompt_following.draw(base, ["a cat"], guidance=5.0)
    seconds = []
    for number in range(5):
        started = time.monotonic()
        prompt_following.draw(base, ["a cat"], guidance=5.0, first_seed=number)
        seconds.append(time.monotonic() - started)
    threads = torch.get_num_threads()
    middle = statistics.median(seconds)
    yield Figure(
        f"one picture, 25 steps, guidance, {threads} threads, s",
        middle,
        "{:.2f}",
        1.5,
        less_is_better=True,
    )
    latents = torch.randn(1, 4, 16, 16)
    started = time.monotonic()
    with torch.no_grad():
        base.decode_latents(latents)
    yield Figure(
        "  of that the VAE; nearly all the rest is the denoiser",
        time.monotonic() - started,
        "{:.2f}",
    )


def teaching_figures(
    options: argparse.Namespace, novel: Sprites, clip_model: ClipModel
) -> Iterator[Figure]:
    """LoRA with konomi's defaults on four scenes of each novel concept, in the three styles in
    turn.
    """
    by_style = {
        style: {lesson.name: lesson for lesson in lessons(novel, style)} for style in STYLES
    }
    chosen = []
    for number, name in enumerate(sorted(set().union(*by_style.values()))[: options.concepts]):
        turned = STYLES[number % 3 :] + STYLES[: number % 3]
        chosen.append(next(by_style[style][name] for style in turned if name in by_style[style]))
    model = str(options.model)
    plain: list[Outcome] = []
    kept: list[Outcome] = []
    for number, lesson in enumerate(chosen):
        plain.append(teach(model, clip_model, novel, lesson, prior=False))
        print(f"  {plain[-1]}", file=sys.stderr, flush=True)
        if number < options.with_prior:
            kept.append(teach(model, clip_model, novel, lesson, prior=True))
            print(f"  with prior: {kept[-1]}", file=sys.stderr, flush=True)
    rise = statistics.mean(o.likeness_after - o.likeness_before for o in plain)
    yield Figure(
        f"taught {len(plain)} novel concepts: likeness rises by", rise, "{:.3f}", 0.15, 0.1
    )
    yield Figure("  from", statistics.mean(o.likeness_before for o in plain), "{:.3f}")
    yield Figure(
        "  longest training, s", max(o.seconds for o in plain), "{:.0f}", 90, less_is_better=True
    )
    yield Figure(
        "  pictures of the class come nearer by",
        statistics.mean(o.class_drift for o in plain),
        "{:.3f}",
    )
    if kept:
        rise = statistics.mean(o.likeness_after - o.likeness_before for o in kept)
        drift = statistics.mean(o.class_drift for o in kept)
        yield Figure(
            f"with prior preservation ({len(kept)} of them): likeness rises by", rise, "{:.3f}"
        )
        bar = rise / 2
        yield Figure(
            "  pictures of the class come nearer by", drift, "{:.3f}", bar, less_is_better=True
        )


if __name__ == "__main__":
    main()

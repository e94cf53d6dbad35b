"""All methods on the same subjects: what each costs, how like the subject its pictures are, and
what it forgets.

    OMP_NUM_THREADS=1 python -m bench.methods --data ../shared/data --jobs 2
    python -m bench.methods --data ../shared/data --kinds lora,textual_inversion --concepts octopus

Each run is `konomi train KIND` with konomi's defaults on four scenes of a concept that `tiny` has
never seen, in a process of its own. Likeness: cosine of image features (tiny's CLIP) between
pictures drawn for captions of four scenes kept aside and these scenes. Prompt following: cosine of
picture and the caption's own words, the class in place of the identifier. Class drift: how much
nearer to the concept pictures of the class alone have come. Means over concepts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tools.tiny import pack
from tools.tiny.captions import with_article
from tools.tiny.clip import ClipModel, tokenize
from tools.tiny.prompt_following import draw
from tools.tiny.scenes import STYLES, Sprites, index_sprites, read_zip, render
from tools.tiny.style import image_features
from tools.tiny.teach import (
    GUIDANCE,
    IDENTIFIER,
    NUM_CLASS_PICTURES,
    Lesson,
    lessons,
    likeness,
    words_for,
    write_lesson,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from konomi.adapters.apply import Strengths, attach
from konomi.formats.adapter_file import read_adapter
from konomi.models.base import BaseModel
from konomi.models.load import load_base

KINDS = (
    "lora", "full", "dreambooth", "textual_inversion", "pivotal", "hypernetwork", "dreamartist",
    "custom_diffusion",
)  # fmt: skip
CONCEPTS = ("octopus", "pineapple", "rocket", "penguin", "teapot", "cactus")
TINY = Path("src/konomi/builtin/tiny")
HEADINGS = ("method", "seconds", "peak MiB", "file KiB", "likeness", "prompt", "class drift")


@dataclass(frozen=True, slots=True)
class Score:
    """Of one method and one concept; or their means."""

    seconds: float
    """From the start of the command to its end, Python's start and preparations included."""
    memory: float
    """Peak of the process, MiB."""
    size: float
    """Of the result, KiB."""
    likeness: float
    prompt: float
    drift: float


@dataclass(frozen=True, slots=True)
class Exam:
    """What every method is asked about a concept, and the truth."""

    lesson: Lesson
    truth_ND: Tensor
    """Features of the scenes kept aside."""
    words_ND: Tensor
    """Features of their captions, with the class word."""
    nearness: float
    """How near pictures of the class are that the untouched base draws."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.methods", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of emoji-novel.zip")
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        help="methods, with settings: lora+prior.source=generate",
    )
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time; give each its threads by OMP_NUM_THREADS",
    )
    parser.add_argument("--style", default="noto", choices=STYLES)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    novel = index_sprites(
        [s for s in read_zip(options.data / "emoji-novel.zip") if s.style in STYLES]
    )
    clip_model = pack.load_clip_model(TINY).eval()
    tokenizer = CLIPTokenizer.from_pretrained(TINY / "tokenizer")
    wanted = options.concepts.split(",")
    exams = [
        prepare(lesson, novel, clip_model, tokenizer)
        for lesson in lessons(novel, options.style)
        if lesson.name in wanted
    ]
    print("{:44}{:>9}{:>10}{:>10}{:>10}{:>9}{:>13}".format(*HEADINGS))
    show(
        "(the base, with the class word)",
        [judge(load_base(TINY), exam, clip_model, exam.lesson.noun) for exam in exams],
    )
    with ThreadPoolExecutor(options.jobs) as pool:
        for asked in options.kinds.split(","):
            show(
                asked,
                list(pool.map(lambda exam, kind=asked: run(kind, exam, novel, clip_model), exams)),
            )


def show(name: str, scores: Sequence[Score]) -> None:
    means = [statistics.mean(column) for column in zip(*map(astuple, scores), strict=True)]
    print(
        f"{name:44}" + "{:9.0f}{:10.0f}{:10.0f}{:10.3f}{:9.3f}{:13.3f}".format(*means), flush=True
    )


@torch.no_grad()
def prepare(
    lesson: Lesson, novel: Sprites, clip_model: ClipModel, tokenizer: CLIPTokenizer
) -> Exam:
    truth = image_features(clip_model, [render(novel, scene) for scene in lesson.kept])
    captions = [words_for(lesson.noun, scene) for scene in lesson.kept]
    words = clip_model.text(input_ids=tokenize(tokenizer, captions, "cpu")).text_embeds.float()
    nearness = likeness(
        clip_model,
        draw(load_base(TINY), classes_of(lesson), guidance=GUIDANCE),
        truth,
        matched=False,
    )
    return Exam(lesson, truth, F.normalize(words, dim=1), nearness)


def classes_of(lesson: Lesson) -> list[str]:
    """Prompts for the class alone."""
    return [with_article(lesson.noun)] * NUM_CLASS_PICTURES


def run(asked: str, exam: Exam, novel: Sprites, clip_model: ClipModel) -> Score:
    """Train as a user would, then draw. `asked` is KIND, or KIND+SETTING+SETTING."""
    kind, *settings = asked.split("+")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = write_lesson(folder / "images", novel, exam.lesson)
        command = [
            sys.executable, "-m", "konomi", "train", kind, "--images", str(images), "--base",
            "tiny", "--trigger",
            IDENTIFIER, "--class", exam.lesson.noun, "--output", str(folder / "run"),
            f"run.name={IDENTIFIER}",
            f"data.cache.folder={folder / 'cache'}", *settings,
        ]  # fmt: skip
        seconds, memory = measured(command)
        result = newest_result(folder / "run")
        with tuned(result) as base:
            score = judge(base, exam, clip_model, f"{IDENTIFIER} {exam.lesson.noun}")
        size = sum(p.stat().st_size for p in results_of(result)) / 1024
    print(
        f"  {asked}, {exam.lesson.name}: {score.likeness:.3f} in {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return Score(seconds, memory, size, score.likeness, score.prompt, score.drift)


LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""A peak begins with the size of the process that started it, and this one holds models: a small
one starts it."""


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command. Raises SystemExit with its last words if it fails."""
    with TemporaryDirectory() as folder:
        said, peak = Path(folder) / "said", Path(folder) / "peak"
        started = time.monotonic()
        with said.open("wb") as file:
            launch = [sys.executable, "-c", LAUNCHER, str(peak), *command]
            code = subprocess.call(launch, stdout=file, stderr=file)
        seconds = time.monotonic() - started
        if code:
            raise SystemExit(f"{' '.join(command)}\n{said.read_text(errors='replace')[-2000:]}")
        return seconds, int(peak.read_text()) / 1024


def newest_result(run_folder: Path) -> Path:
    """The run's final file or folder."""
    return next(
        path for path in sorted(run_folder.glob(f"{IDENTIFIER}*")) if path.stem == IDENTIFIER
    )


def results_of(result: Path) -> list[Path]:
    """All files of a result: a folder's, or the file with what belongs to it (`NAME-neg`)."""
    if result.is_dir():
        return [path for path in result.rglob("*") if path.is_file()]
    return [path for path in result.parent.glob(f"{IDENTIFIER}*") if path.is_file()]


@contextmanager
def tuned(result: Path) -> Iterator[BaseModel]:
    """The base with a result on it, or the model that came out."""
    from konomi.tasks import inspect

    if (result / "model_index.json").is_file() or (
        result.is_file() and inspect(result).kind == "checkpoint"
    ):
        yield load_base(result)
        return
    base = load_base(TINY)
    with attach(base, [(read_adapter(result), Strengths())]):
        yield base


def judge(base: BaseModel, exam: Exam, clip_model: ClipModel, subject: str) -> Score:
    """Likeness, prompt following, and the nearness of the class to the concept over the untouched
    base's.
    """
    pictures = draw(
        base, [words_for(subject, scene) for scene in exam.lesson.kept], guidance=GUIDANCE
    )
    found = image_features(clip_model, pictures)
    classes = draw(base, classes_of(exam.lesson), guidance=GUIDANCE)
    drift = likeness(clip_model, classes, exam.truth_ND, matched=False) - exam.nearness
    like, prompt = (
        float((found * exam.truth_ND).sum(1).mean()),
        float((found * exam.words_ND).sum(1).mean()),
    )
    return Score(0, 0, 0, like, prompt, drift)


if __name__ == "__main__":
    main()

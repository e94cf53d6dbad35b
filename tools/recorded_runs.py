"""Hashes of what short runs leave behind: every method on every family, as a user starts them.

    OMP_NUM_THREADS=1 python -m tools.recorded_runs > before.txt
    OMP_NUM_THREADS=1 python -m tools.recorded_runs > after.txt && diff before.txt after.txt

A redesign keeps all of them. A line is one run: its losses, the tensors of its file and what the
file says of itself (all but dates and hashes), its previews, a picture drawn with the file, and
the file converted to another format. On another machine the numbers are others; compare two states
of the code on one.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from tools.sample_images import paint

from konomi.cli.main import main as konomi
from konomi.models.random_base import random_base
from konomi.models.save import save_folder

FAMILIES = ("sd1", "sd2", "sdxl")
KINDS = (
    "lora", "full", "dreambooth", "textual_inversion", "pivotal", "hypernetwork", "dreamartist",
    "custom_diffusion",
)  # fmt: skip
CONVERTED = {
    "lora": "diffusers", "textual_inversion": "diffusers", "dreamartist": "webui",
    "custom_diffusion": "diffusers", "hypernetwork": "webui", "pivotal": "kohya",
}  # fmt: skip
"""Kind -> another format its file is written in."""
MODELS = ("full", "dreambooth")
"""Kinds whose result is a whole model."""
SETTINGS = (
    "data.resolution=64",
    "run.batch_size=2",
    "run.seed=11",
    "run.preview_every=2",
    "run.device=cpu",
)
SPECIAL = {"lora": ("method.text_rank=2", "method.conv_rank=2", "method.dropout=0.1")}
"""What makes a run of this kind touch more of the code."""
DATED = ("date", "finished", "hash", "started", "sd_model_name", "session")


def main() -> int:
    """Run them, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    # Whatever a cache of the user's holds must not matter, nor the number of threads.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(XDG_CACHE_HOME=f"{scratch}/cache", KONOMI_LANGUAGE="en")
        for family in options.families.split(","):
            folder = Path(scratch) / family
            base, images = folder / "base", folder / "images"
            save_folder(random_base(family, seed=3), base, dtype=torch.float32)
            paint(images, sizes=((64, 64), (64, 64), (96, 64)))
            print(f"{family} base {_hashed(_contents(base.rglob('*.safetensors')))}", flush=True)
            for kind in options.kinds.split(","):
                print(f"{family} {kind} {_recorded(kind, base, images, folder / kind)}", flush=True)
    return 0


def _recorded(kind: str, base: Path, images: Path, run: Path) -> str:
    """One run, and what became of it."""
    _konomi("train", kind, "--images", images, "--base", base, "--trigger", "sks", "--class", "dog",
    "--output", run,
            "--steps", "4", *SETTINGS, *SPECIAL.get(kind, ()))  # fmt: skip
    facts = {"losses": _hashed([_losses(run)])}
    results = [
        path for path in run.iterdir() if path.stem in ("sks", "sks-neg") and path.suffix != ".png"
    ]
    # The word for the negative prompt (DreamArtist) comes along with the other one.
    result = min(results, key=lambda path: len(path.name))
    written = [file for path in sorted(results) for file in _files(path)]
    facts["file"], facts["metadata"] = _hashed(_contents(written)), _hashed(_metadata(written))
    facts["previews"] = _hashed(_pixels(run.rglob("previews/*.png")))
    loaded = ["--base", result] if kind in MODELS else ["--base", base, "--add", result]
    _konomi(
        "generate",
        "a photo of sks dog",
        *loaded,
        "--steps",
        "3",
        "--seed",
        "5",
        "--output",
        run / "drawn",
    )
    facts["picture"] = _hashed(_pixels((run / "drawn").rglob("*.png")))
    if kind in CONVERTED:
        target = CONVERTED[kind]
        facts[target] = _hashed(_contents(_files(_convert(result, run, target))))
    return " ".join(f"{name} {value}" for name, value in facts.items())


def _convert(result: Path, run: Path, target: str) -> Path:
    # The ending follows the format: one of these is right.
    for ending in ("", ".safetensors", ".pt", ".bin"):
        written = run / f"converted{ending}"
        if _konomi("convert", result, written, "--to", target, may_fail=True):
            return written
    sys.exit(f"{result} could not be converted to {target}.")


def _konomi(*arguments: object, may_fail: bool = False) -> bool:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = konomi([str(argument) for argument in arguments])
    if code and not may_fail:
        sys.exit(f"konomi {' '.join(map(str, arguments))} ended with {code}:\n{told.getvalue()}")
    return code == 0


def _losses(run: Path) -> bytes:
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return repr(
        [
            (line["step"], line["loss"], line.get("learning_rate"))
            for line in lines
            if "loss" in line
        ]
    ).encode()


def _files(path: Path) -> Iterable[Path]:
    return sorted(path.rglob("*.*")) if path.is_dir() else [path]


def _contents(paths: Iterable[Path]) -> Iterable[bytes]:
    """Their tensors."""
    for path in sorted(paths):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    yield from _tensor(name, file.get_tensor(name))
        elif path.suffix in (".pt", ".bin"):
            yield from _table(torch.load(path, weights_only=True), path.stem)


def _metadata(paths: Iterable[Path]) -> Iterable[bytes]:
    """What safetensors files say of themselves and does not change from run to run."""
    for path in sorted(paths):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
            yield repr(
                sorted((k, v) for k, v in told.items() if not any(word in k for word in DATED))
            ).encode()


def _table(value: object, name: str) -> Iterable[bytes]:
    if isinstance(value, torch.Tensor):
        yield from _tensor(name, value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _table(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _table(inner, f"{name}.{index}")


def _tensor(name: str, tensor: torch.Tensor) -> Iterable[bytes]:
    yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
    yield tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _pixels(paths: Iterable[Path]) -> Iterable[bytes]:
    for path in sorted(paths):
        with Image.open(path) as image:
            yield f"{path.name} {image.size}".encode()
            yield image.convert("RGB").tobytes()


def _hashed(pieces: Iterable[bytes]) -> str:
    digest, empty = hashlib.sha256(), True
    for piece in pieces:
        digest.update(piece)
        empty = False
    return "nothing" if empty else digest.hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())

"""A run that is cut in two and goes on, beside a whole one; then a picture with its file."""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.gpu.rows import asked
from tools.sample_images import paint

import konomi
from konomi.cli.main import main as command
from konomi.training.events import Step

STEPS, CUT = 6, 3


def main() -> int:
    """Two rows."""
    part = asked("resume")
    with TemporaryDirectory() as folder:
        images = paint(Path(folder, "images"))
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        for event in konomi.train(_recipe(images, whole, part.device)):
            del event
        events = konomi.train(_recipe(images, cut, part.device))
        for event in events:
            if isinstance(event, Step) and event.step > CUT:
                break
        events.close()
        for event in konomi.resume(cut):
            del event
        a, b = _losses(whole), _losses(cut)
        part.write(
            steps=len(b),
            largest_difference=max(abs(a[step] - b[step]) for step in a),
            same_bits=a == b,
        )
        started = time.perf_counter()
        code = command(
            ["generate", "a photo of sks dog", "--base", "tiny", "--add",
            str(cut / "sks.safetensors"), "--seed", "1",
             "--device", part.device, "--output", str(part.output / "drawn")]
        )  # fmt: skip
        part.write(generate_exit_code=code, seconds=time.perf_counter() - started)
    return 0 if a.keys() == b.keys() and code == 0 else 1


def _recipe(images: Path, output: Path, device: str) -> "konomi.Recipe":
    settings = [
        f"run.device={device}",
        "run.batch_size=2",
        f"run.checkpoint_every={CUT}",
        "run.preview_every=0",
    ]
    return konomi.recipe_from_flags(
        "lora", images=[images], base="tiny", trigger="sks", class_noun="dog", output=str(output),
        steps=STEPS,
        overrides=[*settings, 'data.resolution="64"', f'data.cache.folder="{output}-cache"'],
    )  # fmt: skip


def _losses(run: Path) -> dict[int, float]:
    """Step -> loss; of a step that was made twice, the last."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


if __name__ == "__main__":
    sys.exit(main())

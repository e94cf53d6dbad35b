"""What `konomi evaluate` costs beside drawing the same pictures one after another.

    python -m bench.evaluation_cost [--steps 20]

Trains a LoRA on the mascot with eight saves, then measures them (4 prompts x 4 seeds, the base
besides) and draws the same pictures singly: file by file in turn, in one process, so that both meet
the same neighbours. Time is the processor's. Three minutes on two cores.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.tiny import Figure

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.evaluation.prompts import Subject, default_prompts
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.training.events import Prepared

SAVES, PROMPTS, SEEDS = 8, 4, 4
MASCOT = Path(konomi.__file__).parent / "builtin" / "mascot"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.evaluation_cost", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    options = parser.parse_args()
    prompts = [prompt.text for prompt in default_prompts(Subject("sks", "creature"), drawings=True)]
    prompts = [*prompts[:2], *prompts[-2:]]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KONOMI_REPORT"] = "off"
        run = trained(Path(folder))
        measured, alone = in_turn(run, prompts, options.steps)
        started = time.process_time()
        list(evaluated(run, prompts, options.steps))
        again = time.process_time() - started
    print(f"{'':66} {'measured':>8}   bar")
    count = (1 + SAVES) * len(prompts) * SEEDS
    print(Figure(f"evaluate / drawing {count} pictures singly", measured / alone, "{:.2f}", 1.1,
                 less_is_better=True))  # fmt: skip
    print(f"  drawing {alone:.0f} s, evaluating {measured:.0f} s, once more {again:.0f} s")


def evaluated(run: Path, prompts: list[str], steps: int) -> Iterator[object]:
    changes = [f"evaluation.steps={steps}"]
    return konomi.evaluate([run], prompts=prompts, seeds=SEEDS, settings=changes)


def in_turn(run: Path, prompts: list[str], steps: int) -> tuple[float, float]:
    """Seconds of evaluating all files, and of drawing each of them singly as soon as its pictures
    are there.
    """
    each = len(prompts) * SEEDS
    singly = one_after_another(run, prompts, steps)
    measured = alone = 0.0
    drawn = total = 0
    started = time.process_time()
    for event in evaluated(run, prompts, steps):
        measured += time.process_time() - started
        if isinstance(event, Prepared) and event.what == "pictures":
            total = event.total
            started = time.process_time()
            while drawn < event.done // each:
                next(singly)
                drawn += 1
            alone += time.process_time() - started
        started = time.process_time()
    measured += time.process_time() - started
    assert drawn * each == total == (1 + SAVES) * each
    return measured, alone


def trained(folder: Path) -> Path:
    recipe = konomi.recipe_from_flags(
        "lora", images=[MASCOT], base="tiny", trigger="sks", class_noun="creature",
        output=str(folder / "run"), steps=10 * SAVES,
        overrides=["run.save_every=10", "run.preview_every=0", "run.trackers=[]",
                   f'data.cache.folder="{folder / "cache"}"'],
    )  # fmt: skip
    for _ in konomi.train(recipe):
        pass
    return folder / "run"


def one_after_another(run: Path, prompts: list[str], steps: int) -> Iterator[int]:
    """The base, then each file: yields after the last picture of each."""
    base = konomi.load_base("tiny")
    requests = [Request(prompt=p, seed=s, steps=steps) for p in prompts for s in range(SEEDS)]
    yield sum(1 for _ in generate(base, requests))
    for path in sorted(run.glob("sks*.safetensors")):
        with attach(base, [(read_adapter(path), Strengths())]):
            yield sum(1 for _ in generate(base, requests))


if __name__ == "__main__":
    main()

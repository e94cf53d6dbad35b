"""What `konomi evaluate` costs beside drawing the same pictures one after another.

    python -m bench.evaluation_cost

Trains a LoRA on the mascot with eight saves, then measures them (4 prompts x 4 seeds, the base
besides) and draws the same pictures singly, in one process each way. Time is the processor's, so
that a neighbour does not count. Three minutes on two cores.
"""

import os
import tempfile
import time
from pathlib import Path

from bench.tiny import Figure

import konomi
from konomi.adapters.apply import Strengths, attach
from konomi.evaluation.prompts import Subject, default_prompts
from konomi.formats.adapter_file import read_adapter
from konomi.generation.generate import generate
from konomi.generation.request import Request

SAVES, PROMPTS, SEEDS = 8, 4, 4
MASCOT = Path(konomi.__file__).parent / "builtin" / "mascot"


def main() -> None:
    prompts = [prompt.text for prompt in default_prompts(Subject("sks", "creature"), drawings=True)]
    prompts = [*prompts[:2], *prompts[-2:]]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KONOMI_REPORT"] = "off"
        run = trained(Path(folder))
        started = time.process_time()
        events = konomi.evaluate([run], prompts=prompts, seeds=SEEDS)
        pictures = [event for event in events if getattr(event, "what", "") == "pictures"][-1].total
        measured = time.process_time() - started
        started = time.process_time()
        drawn = sum(1 for _ in one_after_another(run, prompts))
        alone = time.process_time() - started
        assert drawn == pictures == (1 + SAVES) * PROMPTS * SEEDS
        started = time.process_time()
        list(konomi.evaluate([run], prompts=prompts, seeds=SEEDS))
        again = time.process_time() - started
    print(f"{'':66} {'measured':>8}   bar")
    print(Figure(f"evaluate / drawing {drawn} pictures singly", measured / alone, "{:.2f}", 1.1,
                 less_is_better=True))  # fmt: skip
    print(f"  drawing {alone:.0f} s, evaluating {measured:.0f} s, once more {again:.0f} s")


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


def one_after_another(run: Path, prompts: list[str]):
    base = konomi.load_base("tiny")
    requests = [Request(prompt=p, seed=s) for p in prompts for s in range(SEEDS)]
    yield from generate(base, requests)
    for path in sorted(run.glob("sks*.safetensors")):
        with attach(base, [(read_adapter(path), Strengths())]):
            yield from generate(base, requests)


if __name__ == "__main__":
    main()

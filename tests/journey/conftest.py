"""A small random base in a folder, a handful of pictures, and runs as a user would start them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    from konomi.models.random_base import random_base
    from konomi.models.save import save_folder

    folder = tmp_path_factory.mktemp("base") / "sd1-small"
    save_folder(random_base("sd1"), folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Five different pictures of two shapes."""
    folder = tmp_path_factory.mktemp("pictures") / "dog"
    folder.mkdir()
    for index, size in enumerate([(64, 64), (64, 64), (64, 64), (96, 64), (96, 64)]):
        image = Image.new("RGB", size, (40 * index, 90, 200 - 30 * index))
        ImageDraw.Draw(image).ellipse((10, 10, 30 + 5 * index, 40), fill=(250, 20 * index, 60))
        image.save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_recipe(base_folder, pictures, cache):
    from konomi import recipe_from_flags

    def make(output: Path, method="lora", steps=6, overrides=()):
        fixed = [
            f'data.cache.folder="{cache}"',
            'data.resolution="64"',
            "run.batch_size=2",
            "run.seed=11",
            "optimizer.learning_rate=0.01" if method == "lora" else "optimizer.learning_rate=0.001",
        ]
        return recipe_from_flags(
            method,
            images=[pictures],
            base=str(base_folder),
            trigger="sks",
            class_noun="dog",
            output=str(output),
            steps=steps,
            overrides=[*fixed, *overrides],
        )

    return make


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    """A recipe on disk, for runs in processes of their own."""
    from konomi.config.load import write_recipe

    def write(output: Path, **options):
        path = tmp_path / f"{output.name}.toml"
        path.write_text(write_recipe(make_recipe(output, **options)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def draw(base_folder, tmp_path):
    """Pictures of the small base, as arrays and as files; two steps, 64 pixels, seed 3."""
    import konomi

    count = iter(range(1000))
    fast = {"steps": 2, "size": "64", "seed": 3}

    def drawn(*prompts, **options):
        output = tmp_path / f"pictures-{next(count)}"
        paths = list(
            konomi.generate(list(prompts), base=str(base_folder), output=output, **(fast | options))
        )
        return [np.asarray(Image.open(path)).astype(int) for path in paths], paths

    return drawn


class Konomi:
    """The command line in a process of its own."""

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}

    @classmethod
    def run(cls, *arguments, **options):
        return subprocess.run(
            [sys.executable, "-m", "konomi", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            env=cls.environment,
            **options,
        )

    @classmethod
    def start(cls, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "konomi", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=cls.environment,
        )

    @staticmethod
    def wait_for_step(folder: Path, step: int, process, seconds=180):
        """Until the log holds `step`."""
        deadline = time.monotonic() + seconds
        needle = f'"step": {step},'
        while time.monotonic() < deadline:
            log = folder / "log.jsonl"
            if log.exists() and needle in log.read_text():
                return
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        raise AssertionError(f"step {step} never came")


@pytest.fixture
def konomi_cli():
    return Konomi


def tensors(path):
    from konomi.storage.tensor_file import read_tensors

    return read_tensors(path)


@pytest.fixture
def same_tensors():
    def same(a: Path, b: Path) -> bool:
        left, right = tensors(a), tensors(b)
        return left.keys() == right.keys() and all(
            torch.equal(left[name], right[name]) for name in left
        )

    return same


QUICK_COMPARISON = ('data.resolution="64"', "run.checkpoint_every=1", "evaluation.steps=1",
            "evaluation.seeds=1", "evaluation.size=32", "evaluation.encoders.image=tiny",
            "evaluation.encoders.text=tiny",
            'evaluation.prompts=["a {}", "a dog", "a fox"]')  # fmt: skip


def in_this_process(runs, folder, *, jobs, threads, stop, until=None):
    """Processes take seconds to start; what they do is done here."""
    from konomi.errors import KonomiError
    from konomi.tasks.candidate_processes import FromRun, Trained
    from konomi.tasks.candidate_worker import train_candidate
    from konomi.tasks.planning import recipe_path, run_folder
    from konomi.training.events import Finished
    from konomi.training.stop import Stop

    for run in runs:
        last = Trained(failure="said nothing")
        try:
            for event in train_candidate(
                recipe_path(folder, run.id),
                run_folder(folder, run.id),
                Stop(),
                until=(until or {}).get(run.id, 0),
            ):
                yield FromRun(run.id, event)
                if isinstance(event, Finished):
                    last = Trained(event.step, event.path)
        except KonomiError as error:
            last = Trained(failure=str(error))
        yield FromRun(run.id, last)


@pytest.fixture
def quick_comparison(monkeypatch, tmp_path):
    """In a folder of its own, runs in this process, no page: settings that make it quick."""
    from konomi.tasks import comparing

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KONOMI_REPORT", "off")
    monkeypatch.setattr(comparing, "train_in_processes", in_this_process)
    return QUICK_COMPARISON

"""Adding a method or a format touches its own file and one tuple: done here to a copy of the package, and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

SOURCE = Path(__file__).parents[2] / "src" / "konomi"

METHOD = '''
"""Bias tuning: only the biases of the denoiser learn (a method made up for this test)."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference
from konomi.config.sections import STRICT
from konomi.methods.denoising import DenoisingLoss, subject_and_prior_loss
from konomi.methods.method import Needs, ParameterGroup, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasConfig:
    """Only biases learn."""

    __pydantic_config__ = STRICT
    kind: Literal["bias"] = "bias"
    boldness: float = 1.0
    """How bold."""


class Bias:
    config_type: ClassVar = BiasConfig
    default_learning_rate: ClassVar = 1e-3

    def __init__(self, base, recipe):
        self.base, self.recipe = base, recipe
        self.denoising = DenoisingLoss(base, recipe)
        self.needs = Needs(float32_parts=("denoiser",))

    def default_steps(self, num_images):
        return 2

    def plan(self):
        modules = self.base.targets("feed_forward")
        self.modules = {key: m.requires_grad_(False) for key, m in modules.items() if m.bias is not None}
        self.before = {key: m.bias.detach().clone() for key, m in self.modules.items()}
        parameters = {f"{key}.bias": m.bias.requires_grad_(True) for key, m in self.modules.items()}
        return (Phase("bias", (ParameterGroup("bias", parameters, self.default_learning_rate),), self.loss),)

    def loss(self, batch, rng):
        return subject_and_prior_loss(self.denoising, batch, rng, prior_weight=1.0)

    def export(self):
        layers = {k: Difference(bias=m.bias.detach() - self.before[k]) for k, m in self.modules.items()}
        return Adapter(layers=layers, family=self.base.family)

    @contextmanager
    def as_loaded(self, result):
        yield

    def close(self):
        self.base.denoiser.requires_grad_(False)
'''

FORMAT = '''
"""A format made up for this test: every tensor is a difference of weights under its canonical key."""
from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference
from konomi.formats.source import Parsed, Source

NAME = "plain differences"


def recognise(source: Source) -> bool:
    return source.metadata.get("format") == "plain-differences"


def parse(source: Source) -> Parsed:
    layers = {name: Difference(weight=tensor) for name, tensor in source.tensors().items()}
    return Parsed(Adapter(layers=layers, family="sd1"), ())
'''


@pytest.fixture
def copied(tmp_path):
    """A copy of the package that can be changed, and a way to run its command line."""
    package = tmp_path / "src" / "konomi"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def run(*arguments):
        command = [sys.executable, "-P", "-m", "konomi", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)

    return package, run


def add_line(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.slow
def test_a_new_method_is_its_file_and_one_tuple(copied, tmp_path):
    package, run = copied
    (package / "methods" / "bias.py").write_text(METHOD, encoding="utf-8")
    add_line(
        package / "methods" / "__init__.py",
        "METHODS: tuple[type[Method], ...] = (",
        "from konomi.methods.bias import Bias\n\nMETHODS: tuple[type[Method], ...] = (Bias, ",
    )
    (tmp_path / "images").mkdir()
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "images" / "a.png")

    recipe = run("new", "bias")
    assert recipe.returncode == 0, recipe.stderr
    assert "boldness" in recipe.stdout
    assert "How bold." in recipe.stdout
    trained = run(
        "train",
        "bias",
        "--images",
        "images",
        "--base",
        "tiny",
        "--output",
        "run",
        "method.boldness=2",
        f'data.cache.folder="{tmp_path / "cache"}"',
    )
    assert trained.returncode == 0, trained.stderr
    wrong = run("train", "bias", "--images", "images", "--base", "tiny", "method.boldnes=2")
    assert wrong.returncode == 1
    assert "method.boldness" in wrong.stderr
    (result,) = (tmp_path / "run").glob("*.safetensors")
    assert run("generate", "a cat", "--base", "tiny", "--add", result, "--steps", "2").returncode == 0


@pytest.mark.slow
def test_a_new_format_is_its_file_and_one_tuple(copied, tmp_path):
    from safetensors.torch import save_file

    from konomi import load_base

    package, run = copied
    (package / "formats" / "plain.py").write_text(FORMAT, encoding="utf-8")
    add_line(
        package / "formats" / "__init__.py",
        "ADAPTER_FORMATS: tuple[AdapterFormat, ...] = (",
        "from konomi.formats import plain\n\nADAPTER_FORMATS: tuple[AdapterFormat, ...] = (plain, ",
    )
    key, module = next(iter(load_base("tiny", device="cpu").targets("attention").items()))
    file = tmp_path / "some.safetensors"
    save_file({key: torch.ones_like(module.weight)}, file, metadata={"format": "plain-differences"})

    told = run("inspect", file, "--json")
    assert told.returncode == 0, told.stderr
    assert "plain differences" in told.stdout
    assert run("generate", "a cat", "--base", "tiny", "--add", file, "--steps", "2").returncode == 0
    assert run("convert", file, tmp_path / "out.safetensors").returncode == 0

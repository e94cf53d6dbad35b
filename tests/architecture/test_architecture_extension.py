"""Adding a method, a format or a kind of update touches its own file and one tuple: done here to a
copy of the package, and used.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "konomi"

METHOD = '''
"""Bias tuning: only the biases of the denoiser learn (a method made up for this test)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference
from konomi.config.bounds import STRICT
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

    def __init__(self, config, base, recipe):
        self.config, self.base, self.recipe = config, base, recipe
        self.denoising = DenoisingLoss(base, recipe)

    @staticmethod
    def needs(config, base, recipe):
        return Needs(float32_parts=("denoiser",))

    def default_steps(self, num_images):
        return 2

    def plan(self):
        modules = self.base.select_layers("feed_forward")
        self.modules = {
            key: m.requires_grad_(False) for key, m in modules.items() if m.bias is not None
        }
        self.before = {key: m.bias.detach().clone() for key, m in self.modules.items()}
        parameters = {f"{key}.bias": m.bias.requires_grad_(True) for key, m in self.modules.items()}
        return (
            Phase(
                "bias", (ParameterGroup("bias", parameters, self.default_learning_rate),), self.loss
            ),
        )

    def loss(self, batch, rng):
        return subject_and_prior_loss(self.denoising, batch, rng, prior_weight=1.0)

    def export(self):
        layers = {
            k: Difference(bias=m.bias.detach() - self.before[k]) for k, m in self.modules.items()
        }
        return Adapter(layers=layers, family=self.base.family)

    @contextmanager
    def as_loaded(self, result):
        yield

    def close(self):
        self.base.denoiser.requires_grad_(False)
'''

FORMAT = '''
"""A format made up for this test: every tensor is a difference of weights."""

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


KIND = '''
"""A kind made up for this test: a row moves by one amount, and so does a column."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from konomi.adapters.kinds.closed_form import fit
from konomi.adapters.kinds.kind import About, Training
from konomi.adapters.kinds.parts import LayerError
from konomi.errors import ModelError

_PARTS = ("shift_rows", "shift_columns")


@dataclass(frozen=True, slots=True)
class ShiftSpec:
    has_dropout: ClassVar = False

    def layer(self, key, module, *, seed):
        return ShiftLayer(key, module, self)


@dataclass(frozen=True, slots=True)
class Shift:
    about: ClassVar = About(
        "shift",
        parts={name: (1,) for name in _PARTS},
        complete=(frozenset(_PARTS),),
        algo="shift",
        training=Training("shift", lambda settings: ShiftSpec()),
    )
    alpha: ClassVar[None] = None
    magnitude: ClassVar[None] = None
    bias: ClassVar[None] = None
    whole: ClassVar[None] = None
    rank: ClassVar[None] = None

    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def from_parts(cls, parts):
        for name in _PARTS:
            if name not in parts:
                raise LayerError("", f"has no {name}")
        return cls(*(parts[name] for name in _PARTS))

    def to_parts(self, *, norm):
        return {"shift_rows": self.rows, "shift_columns": self.columns}

    @property
    def input_width(self):
        return None

    def delta(self, weight):
        return fit(self.rows[:, None] + self.columns, weight)

    def bias_delta(self, bias):
        return None

    def difference(self):
        return None

    def as_low_rank(self):
        return None

    def norm(self):
        return None


class ShiftLayer(nn.Module):
    def __init__(self, key, base, spec):
        super().__init__()
        self._base, self.key, self.spec, self.rng = (base,), key, spec, None
        outputs, inputs = base.weight.flatten(1).shape
        self.rows, self.columns = (
            nn.Parameter(torch.zeros(outputs)),
            nn.Parameter(torch.zeros(inputs)),
        )

    @property
    def base(self):
        return self._base[0]

    def forward(self, x):
        weight = self.base.weight + (self.rows[:, None] + self.columns).reshape(
            self.base.weight.shape
        )
        if isinstance(self.base, nn.Conv2d):
            return self.base._conv_forward(x, weight, self.base.bias)
        return functional.linear(x, weight, self.base.bias)

    def export(self):
        return Shift(self.rows.detach().clone(), self.columns.detach().clone())

    @torch.no_grad()
    def load(self, update):
        if not isinstance(update, Shift) or update.rows.shape != self.rows.shape:
            raise ModelError(f"{self.key} is of another kind or size in the file to go on from.")
        self.rows.copy_(update.rows)
        self.columns.copy_(update.columns)
'''

USE_OF_KIND = """
import sys
from pathlib import Path

import torch

from konomi import load_base
from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach, fold
from konomi.adapters.conversion import with_origins
from konomi.adapters.delta import delta
from konomi.adapters.kinds.shift import Shift
from konomi.formats.adapter_file import read_adapter, write_adapter

base, file = load_base("tiny", device="cpu"), Path(sys.argv[1])
modules = base.select_layers("transformer")
shift = {
    k: Shift(torch.randn(m.weight.shape[0]) / 9, torch.randn(m.weight.shape[1]) / 9)
    for k, m in modules.items()
}
write_adapter(Adapter(layers=shift, family=base.family), file, "kohya")
read = read_adapter(file)
assert all(torch.equal(read.layers[key].rows, update.rows) for key, update in shift.items())
before = {key: module.weight.clone() for key, module in modules.items()}
whole = with_origins(base, read).layers
with attach(base, [(read, Strengths(0.5))]):
    for key, module in modules.items():
        torch.testing.assert_close(
            module.weight, before[key] + 0.5 * delta(shift[key], before[key])
        )
assert all(torch.equal(module.weight, before[key]) for key, module in modules.items())
fold(base, [(read, Strengths())])
for key, module in modules.items():
    torch.testing.assert_close(module.weight, whole[key].weight)
    moved = before[key].flatten(1) + shift[key].rows[:, None] + shift[key].columns
    torch.testing.assert_close(module.weight.flatten(1), moved)
"""


FAMILY = """
"A family made up for this test: a Stable Diffusion 1 under other names."

import json
from dataclasses import replace
from pathlib import Path

from konomi.families.sd1 import SD1

FOLDERS = ("unet", "vae", "text_encoder", "scheduler")
CONFIGS = Path(__file__).parent / "configs" / "sd1"
(encoder,), (variant, _) = SD1.text_encoders, SD1.variants
TOY = replace(
    SD1,
    name="toy",
    title="Toy",
    denoiser=replace(SD1.denoiser, kohya_prefix="lora_toy", context_width=32),
    text_encoders=(replace(encoder, kohya_prefix="lora_toytext", width=32),),
    variants=(replace(variant, architecture="toy-v1", base_model_version="toy_v1"),),
    recognise_folder=lambda config, folders: config.get("norm_eps") == 2e-5,
    recognise_single_file=lambda shapes: False,
    recognise_metadata=lambda metadata: metadata.get("ss_base_model_version") == "toy_v1",
    published={
        folder: json.loads((CONFIGS / f"{folder}.json").read_text(encoding="utf-8"))
        for folder in FOLDERS
    },
    random_configs={**SD1.random_configs, "unet": {**SD1.random_configs["unet"], "norm_eps": 2e-5}},
)
"""

BASE = """
import torch
from konomi.models.save import save_folder
from konomi.models.random_base import random_base
save_folder(random_base("toy"), "base", dtype=torch.float32)
"""


@pytest.mark.slow
def test_a_new_method_is_its_file_and_one_tuple(copied, add_line, tmp_path):
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
    assert (
        run("generate", "a cat", "--base", "tiny", "--add", result, "--steps", "2").returncode == 0
    )


@pytest.mark.slow
def test_a_new_format_is_its_file_and_one_tuple(copied, add_line, tmp_path):
    from safetensors.torch import save_file

    from konomi import load_base

    package, run = copied
    (package / "formats" / "plain.py").write_text(FORMAT, encoding="utf-8")
    add_line(
        package / "formats" / "__init__.py",
        "ADAPTER_FORMATS: tuple[AdapterFormat, ...] = (",
        "from konomi.formats import plain\n\nADAPTER_FORMATS: tuple[AdapterFormat, ...] = (plain, ",
    )
    key, module = next(iter(load_base("tiny", device="cpu").select_layers("attention").items()))
    file = tmp_path / "some.safetensors"
    save_file({key: torch.ones_like(module.weight)}, file, metadata={"format": "plain-differences"})

    told = run("inspect", file, "--json")
    assert told.returncode == 0, told.stderr
    assert "plain differences" in told.stdout
    assert run("generate", "a cat", "--base", "tiny", "--add", file, "--steps", "2").returncode == 0
    assert run("convert", file, tmp_path / "out.safetensors").returncode == 0


@pytest.mark.slow
def test_a_new_kind_of_update_is_its_file_and_one_tuple(copied, add_line, tmp_path):
    package, run = copied
    (package / "adapters" / "kinds" / "shift.py").write_text(KIND, encoding="utf-8")
    add_line(
        package / "adapters" / "kinds" / "__init__.py",
        "KINDS: tuple[Kind, ...] = (",
        "from konomi.adapters.kinds.shift import Shift\n\nKINDS: tuple[Kind, ...] = (Shift, ",
    )
    script, file = tmp_path / "use_of_kind.py", tmp_path / "shift.safetensors"
    script.write_text(USE_OF_KIND, encoding="utf-8")
    used = run(file, module="use_of_kind", path=tmp_path)
    assert used.returncode == 0, used.stderr

    # The contract of all kinds, with its layer in training.
    shutil.copy(
        ROOT / "tests" / "contracts" / "test_contracts_kinds.py", tmp_path / "test_kinds.py"
    )
    held = run("-p", "no:cacheprovider", "-q", "-k", "shift", "test_kinds.py", module="pytest")
    assert held.returncode == 0 and "8 passed" in held.stdout, held.stdout

    told = run("inspect", file, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    report = report[0] if isinstance(report, list) else report
    assert list(report["layer_kinds"]) == ["shift"] and not report["unknown"]
    assert report["metadata"]["ss_network_module"] == "lycoris.kohya"
    assert json.loads(report["metadata"]["ss_network_args"]) == {"algo": "shift"}
    pictures = []
    for weight in ("0", "1"):
        asked = (
            "generate",
            "a cat",
            "--base",
            "tiny",
            "--steps",
            "2",
            "--seed",
            "1",
            "--output",
            f"pictures-{weight}",
        )
        drawn = run(*asked, "--add", f"{file}:{weight}")
        assert drawn.returncode == 0, drawn.stderr
        (picture,) = (tmp_path / f"pictures-{weight}").glob("*.png")
        pictures.append(Image.open(picture).tobytes())
    assert pictures[0] != pictures[1]
    assert run("convert", file, tmp_path / "again.safetensors").returncode == 0
    refused = run("convert", file, tmp_path / "peft", "--to", "peft")
    assert refused.returncode == 1 and "kind shift" in refused.stderr


@pytest.mark.slow
def test_a_new_family_is_its_file_and_one_tuple(copied, add_line, tmp_path):
    from safetensors import safe_open

    package, run = copied
    (package / "families" / "toy.py").write_text(FAMILY, encoding="utf-8")
    add_line(
        package / "families" / "__init__.py",
        "FAMILIES: tuple[Family, ...] = (",
        "from konomi.families.toy import TOY\n\nFAMILIES: tuple[Family, ...] = (TOY, ",
    )
    environment = os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-P", "-c", BASE], cwd=tmp_path, env=environment, check=True, timeout=240
    )
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "images" / "a.png")

    what = [
        "lora",
        "--images",
        "images",
        "--base",
        "base",
        "--output",
        "run",
        "--steps",
        "1",
        "data.resolution=64",
    ]
    trained = run("train", *what, f'data.cache.folder="{tmp_path / "cache"}"')
    assert trained.returncode == 0, trained.stderr
    (result,) = (tmp_path / "run").glob("*.safetensors")
    with safe_open(result, "pt") as file:
        assert all(name.startswith("lora_toy_") for name in file.keys())  # noqa: SIM118
        said = file.metadata()
    assert (said["ss_base_model_version"], said["modelspec.architecture"]) == (
        "toy_v1",
        "toy-v1/lora",
    )
    for path in (result, tmp_path / "base"):
        told = run("inspect", path, "--json")
        assert '"family": "toy"' in told.stdout, told.stderr
    drawn = run(
        "generate", "a cat", "--base", "base", "--add", result, "--steps", "2", "--size", "64"
    )
    assert drawn.returncode == 0, drawn.stderr

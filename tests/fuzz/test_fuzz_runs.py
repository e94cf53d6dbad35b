"""Whatever lies in a run folder, one clear line comes of it: recipes, checkpoints' manifests and
states, logs.
"""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from bounds import CHARACTERS, fuzzed
from hypothesis import given
from hypothesis import strategies as st

from konomi.errors import KonomiError
from konomi.storage.hashing import sha256_file
from konomi.storage.lock import read_holder
from konomi.tasks.run_folder import recipe_of_run
from konomi.training.checkpoint import read_checkpoint, write_checkpoint
from konomi.training.identity import data_identity, differences
from konomi.training.log import cut_log, read_log
from konomi.training.state_check import check_numbers
from konomi.training.trainer import TrainState

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=20)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(CHARACTERS, max_size=12), inner, max_size=4)
    ),
)
NUMBERS = {
    "step": 1,
    "phase": 0,
    "samples_seen": 1,
    "accumulation": 1,
    "average_updates": 0,
    "scaler": {},
    "optimizer": {"parameters": {}, "groups": []},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    state = TrainState({"weights": {"a": torch.ones(2)}, "optimizer": {}}, NUMBERS)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints"), state, {"recipe": {}}, keep=1)


def quietly(work):
    """The work's answer; nothing but a KonomiError may come instead."""
    try:
        return work()
    except KonomiError as error:
        assert str(error).strip()
        return None


@fuzzed
@given(
    name=st.sampled_from(["manifest.json", "state.json", "weights.safetensors"]),
    data=st.binary(max_size=200),
)
def test_any_bytes_in_a_checkpoint(checkpoint, name, data):
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(checkpoint, Path(folder) / checkpoint.name))
        (copy / name).write_bytes(data)
        sums = {
            path.name: sha256_file(path) for path in copy.iterdir() if path.name != "manifest.json"
        }
        if name != "manifest.json":
            (copy / "manifest.json").write_text(json.dumps(sums))
        quietly(lambda: read_checkpoint(copy))


@fuzzed
@given(sums=st.dictionaries(st.text(CHARACTERS, max_size=30), values, max_size=4))
def test_any_table_as_a_manifest(checkpoint, sums):
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(checkpoint, Path(folder) / checkpoint.name))
        (copy / "manifest.json").write_text(json.dumps(sums))
        quietly(lambda: read_checkpoint(copy))


@fuzzed
@given(name=st.sampled_from(sorted(NUMBERS)), value=values)
def test_any_number_of_a_state(name, value):
    quietly(lambda: check_numbers(NUMBERS | {name: value}, num_phases=1))


@fuzzed
@given(
    then=st.dictionaries(
        st.sampled_from(["recipe", "data", "base", "versions", "dataset_files", "adapters"]), values
    )
)
def test_any_identity_can_be_compared(then):
    now = {
        "recipe": {"run.seed": 1},
        "data": data_identity([], []),
        "dataset_files": {"a.toml": {"run.batch_size": 2}},
        "base": "x",
        "adapters": ["style 0123456789ab at 0.8"],
        "versions": {"konomi": "1", "torch": "2"},
    }
    assert all(isinstance(line, str) for line in differences(then, now))


@fuzzed
@given(
    lines=st.lists(
        st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()), max_size=6
    )
)
def test_any_log(lines):
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        log.write_bytes(b"\n".join([*lines, b'{"step": 1, "loss": 2.0}', b'{"step": 9}']))
        cut_log(Path(folder), 5)
        steps = [entry["step"] for entry in read_log(Path(folder))]
        assert 1 in steps
        assert max(steps) <= 5


@fuzzed
@given(data=st.binary(max_size=120) | values.map(lambda value: json.dumps(value).encode()))
def test_any_lock(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.lock"
        path.write_bytes(data)
        holder = read_holder(path)
        assert holder is None or holder.pid > 0
        assert holder is None or holder.is_gone() in (True, False)


@fuzzed
@given(data=st.binary(max_size=200) | st.text(CHARACTERS, max_size=100).map(str.encode))
def test_any_bytes_as_a_recipe(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.toml").write_bytes(data)
        quietly(lambda: recipe_of_run(Path(folder)))
        (Path(folder) / "recipe.toml").write_bytes(
            b'base = "tiny"\n[method]\nkind = "lora"\n' + data
        )
        quietly(lambda: recipe_of_run(Path(folder)))


def test_deep_and_large_recipes_are_one_line(tmp_path):
    for text in (
        "a=" + "[" * 50_000,
        "a" + ".a" * 20_000 + "=1",
        "a=" + "9" * 6000,
        'x="' + "y" * (5 * 2**20) + '"',
    ):
        (tmp_path / "recipe.toml").write_text(text)
        with pytest.raises(KonomiError):
            recipe_of_run(tmp_path)

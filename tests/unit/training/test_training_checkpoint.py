import errno
import json
import os
import stat

import pytest
import torch

from konomi.errors import FileFormatError, RunError
from konomi.storage.hashing import sha256_file
from konomi.training.checkpoint import (
    checkpoint_paths,
    newest_good,
    read_checkpoint,
    write_checkpoint,
)
from konomi.training.trainer import TrainState

RUN = {"recipe": {}}


def state(step, value=1.0):
    tensors = {
        "weights": {"a": torch.full((64,), value), "b": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer": {},
    }
    return TrainState(tensors, {"step": step, "rate": 0.1 + 0.2})


def equal(a, b):
    return all(
        torch.equal(a.tensors[f][n], b.tensors[f][n]) for f in a.tensors for n in a.tensors[f]
    )


def test_round_trip_is_exact_and_pickle_free(tmp_path):
    path = write_checkpoint(tmp_path, state(7), RUN, keep=2)
    back = read_checkpoint(path)
    assert path.name == "step-000007"
    assert equal(back.state, state(7))
    assert back.state.numbers == state(7).numbers
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_keeps_the_newest_and_never_fewer_than_one(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, state(step), RUN, keep=2)
    assert [p.name for p in checkpoint_paths(tmp_path)] == ["step-000003", "step-000004"]
    write_checkpoint(tmp_path, state(5), RUN, keep=0)
    assert [p.name for p in checkpoint_paths(tmp_path)] == ["step-000005"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, zero, flip, remove])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, name):
    write_checkpoint(tmp_path, state(1), RUN, keep=3)
    newest = write_checkpoint(tmp_path, state(2, 5.0), RUN, keep=3)
    damage(newest / name)
    warnings = []
    found = newest_good(tmp_path, warn=warnings.append)
    assert found.state.numbers["step"] == 1
    # A flipped bit in the manifest shows as a checksum of the file it speaks of.
    assert len(warnings) == 1
    assert "step-000002" in warnings[0]
    if name != "manifest.json":
        assert name in warnings[0]


def test_all_damaged_is_an_error_not_a_new_start(tmp_path):
    for step in (1, 2):
        truncate(write_checkpoint(tmp_path, state(step), RUN, keep=3) / "weights.safetensors")
    with pytest.raises(RunError, match="all 2 checkpoints are damaged"):
        newest_good(tmp_path, warn=lambda text: None)
    with pytest.raises(RunError, match="no checkpoint"):
        newest_good(tmp_path / "elsewhere", warn=lambda text: None)


def test_newer_layouts_are_refused(tmp_path):
    path = write_checkpoint(tmp_path, state(1), RUN, keep=1)
    content = json.loads((path / "state.json").read_text()) | {"layout": 99}
    (path / "state.json").write_text(json.dumps(content))
    sums = json.loads((path / "manifest.json").read_text())
    sums.pop("state.json")
    (path / "manifest.json").write_text(json.dumps(sums))
    with pytest.raises(FileFormatError, match="newer konomi"):
        read_checkpoint(path)


CALLS = ["fsync", "replace", "rename", "mkdir", "open", "write"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_disk_at_any_call_leaves_the_earlier_checkpoint(
    tmp_path, monkeypatch, call, code
):
    """The n-th file-system call of a save fails, for every n it makes."""
    earlier = write_checkpoint(tmp_path, state(1), RUN, keep=1)
    real = getattr(os, call)
    failures, nth = 0, 0
    while True:
        count = -1

        def failing(*args, real=real, nth=nth, **kwargs):
            nonlocal count
            count += 1
            if count == nth:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                write_checkpoint(tmp_path, state(2), RUN, keep=1)
                survived = True
            except RunError as error:
                survived, failures = False, failures + 1
                assert str(tmp_path) in str(error)
        found = newest_good(tmp_path, warn=lambda text: None)
        assert equal(found.state, state(found.state.numbers["step"]))
        if survived and count < nth:
            break
        nth += 1
        if not earlier.exists():
            break
    assert [p.name for p in checkpoint_paths(tmp_path)][-1] == "step-000002" or failures


def test_too_little_space_is_said_before_anything_is_touched(tmp_path, monkeypatch):
    earlier = write_checkpoint(tmp_path, state(1), RUN, keep=1)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(RunError, match="needed"):
        write_checkpoint(tmp_path, state(2), RUN, keep=1)
    assert read_checkpoint(earlier).state.numbers["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def hostile(checkpoint, name):
    manifest = checkpoint / "manifest.json"
    sums = json.loads(manifest.read_text())
    if name == "pipe":
        (checkpoint / "weights.safetensors").unlink()
        os.mkfifo(checkpoint / "weights.safetensors")
    elif name == "link":
        (checkpoint / "weights.safetensors").unlink()
        (checkpoint / "weights.safetensors").symlink_to("/dev/zero")
    elif name == "huge":
        with (checkpoint / "state.json").open("wb") as file:
            file.truncate(2**40)
    elif name == "hole":
        header = json.dumps(
            {"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}
        ).encode()
        with (checkpoint / "weights.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2**40)
    elif name == "deep":
        (checkpoint / "manifest.json").write_text('{"a":' * 100_000)
    elif name == "manifest pipe":
        manifest.unlink()
        os.mkfifo(manifest)
    else:
        manifest.write_text(json.dumps(sums | {name: "00"}))


@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero",
        "../../../recipe.toml",
        "a/b.json",
        "x\x1b[2J.json",
        "pipe",
        "link",
        "huge",
        "hole",
        "deep",
        "manifest pipe",
    ],
)
def test_a_checkpoint_from_elsewhere_opens_nothing_but_its_own_files(tmp_path, name, monkeypatch):
    hostile(write_checkpoint(tmp_path, state(1), RUN, keep=1), name)
    opened = []
    monkeypatch.setattr(
        "konomi.training.checkpoint.sha256_file",
        lambda path: opened.append(path) or sha256_file(path),
    )
    warnings = []
    with pytest.raises(RunError, match="all 1 checkpoints are damaged"):
        newest_good(tmp_path, warn=warnings.append, most_bytes=2**20)
    assert len(warnings) == 1
    assert not any(stat.S_ISFIFO(path.lstat().st_mode) or path.is_symlink() for path in opened)


def test_a_damaged_later_checkpoint_never_outlives_a_good_one(tmp_path):
    def write(step):
        return write_checkpoint(tmp_path, state(step), RUN, keep=1)

    damaged = write(1_000_000)
    (damaged / "state.json").write_text("")
    write(999_999)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-999999"]
    write(1_000_001)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-1000001"]

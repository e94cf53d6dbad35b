"""Whole runs with trackers: the real Weights & Biases, offline, read back from its own files; one
that is absent; one that fails.
"""

import json
import struct
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

import konomi
from konomi.config.load import read_toml
from konomi.errors import MissingExtraError
from konomi.training.events import Finished, Step, Warned

PREVIEWS = [
    "run.preview_every=2",
    "preview.steps=2",
    'preview.size="64"',
    'preview.prompts=["a sks dog", "a cat"]',
]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    wandb = pytest.importorskip(
        "wandb", minversion="0.31", reason="needs wandb (pip install 'konomi[trackers]')"
    )
    for name, value in {
        "MODE": "offline",
        "CACHE_DIR": "cache",
        "CONFIG_DIR": "config",
        "DATA_DIR": "data",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value if name == "MODE" else str(tmp_path / value))
    wandb.teardown()
    yield
    wandb.teardown()


def records(path):
    """What wandb wrote: protocol buffers in LevelDB's log format, after seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        # 1 is a whole record, 2 the first part of one, 3 a middle one, 4 the last.
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def history(path):
    """The numbers of each step: {step: {name: value}}."""
    rows = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                i.key or ".".join(i.nested_key): json.loads(i.value_json)
                for i in record.history.item
            }
            rows[record.history.step.num] = items
    return rows


def test_wandb_holds_what_the_log_holds_and_a_resumed_run_is_one(make_recipe, tmp_path, offline):
    folder = tmp_path / "dog-2"
    overrides = [*PREVIEWS, "run.trackers=wandb"]
    events = list(konomi.train(make_recipe(folder, steps=2, overrides=overrides)))
    # wandb names the folders of sittings by the second.
    time.sleep(1)
    events += list(konomi.resume(folder, steps=4))
    assert [e.message for e in events if isinstance(e, Warned)] == []
    assert not (folder / "tensorboard").exists()

    first, second = sorted(
        folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime
    )
    runs = [
        next(r.run for r in records(p) if r.WhichOneof("record_type") == "run")
        for p in (first, second)
    ]
    assert runs[0].run_id == runs[1].run_id == (folder / "wandb" / "run-id.txt").read_text().strip()
    assert (runs[0].project, runs[0].display_name, runs[0].job_type) == ("konomi", "dog-2", "lora")
    config = {update.key: json.loads(update.value_json) for update in runs[1].config.update}
    assert {name: config[name] for name in config if not name.startswith("_")} == read_toml(
        folder / "recipe.toml"
    )

    rows = [history(path) for path in (first, second)]
    assert [sorted(row) for row in rows] == [[0, 1, 2], [3, 4]]
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = {
        step: (row["loss"], row["learning_rate"])
        for part in rows
        for step, row in part.items()
        if step
    }
    assert told == {entry["step"]: (entry["loss"], entry["learning_rate"]) for entry in entries}
    for step, row in ((0, rows[0][0]), (2, rows[0][2]), (4, rows[1][4])):
        for index in (0, 1):
            sent = (first if step < 3 else second).parent / "files" / row[f"preview/{index}.path"]
            assert (
                sent.read_bytes()
                == (folder / "previews" / f"step-{step:06d}-{index:02d}.png").read_bytes()
            )

    list(
        konomi.train(make_recipe(folder, steps=1, overrides=["run.trackers=wandb"]), overwrite=True)
    )
    (only,) = folder.glob("wandb/offline-run-*")
    assert runs[0].run_id not in only.name


def test_an_absent_tracker_is_known_before_anything_is_touched(make_recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    list(konomi.train(make_recipe(folder, steps=1)))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = make_recipe(folder, steps=1, overrides=["run.trackers=tensorboard,wandb"])
    for verb in (lambda: list(konomi.train(recipe, overwrite=True)), lambda: konomi.check(recipe)):
        with pytest.raises(MissingExtraError, match=r"pip install 'konomi\[trackers\]'"):
            verb()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_failing_tracker_costs_nothing(make_recipe, tmp_path, monkeypatch, same_tensors):
    broken = ModuleType("wandb")
    broken.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with_it, without = tmp_path / "with", tmp_path / "without"
    events = list(
        konomi.train(make_recipe(with_it, steps=3, overrides=["run.trackers=tensorboard,wandb"]))
    )
    list(konomi.train(make_recipe(without, steps=3, overrides=["run.trackers="])))
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned.startswith("wandb failed and is switched off (")
    assert len([event for event in events if isinstance(event, Step)]) == 3
    assert isinstance(events[-1], Finished)
    assert same_tensors(with_it / "sks.safetensors", without / "sks.safetensors")
    assert (with_it / "tensorboard").is_dir()
    assert not (without / "tensorboard").exists()
    # Trackers may change between sittings: it stays the same run.
    text = (with_it / "recipe.toml").read_text()
    (with_it / "recipe.toml").write_text(
        text.replace('trackers = ["tensorboard", "wandb"]', "trackers = []")
    )
    assert list(konomi.resume(with_it, steps=4))[-1].step == 4

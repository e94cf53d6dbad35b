"""Trackers: what they record, read back from their own files, and that nothing they do reaches the
training.
"""

import struct
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from konomi.config.load import recipe_data
from konomi.config.recipe import Recipe
from konomi.config.sections import RunConfig
from konomi.errors import MissingExtraError
from konomi.methods.lora import LoraConfig
from konomi.training.events import Finished, Previewed, Step, Validated, Warned
from konomi.training.log import logged, read_log
from konomi.training.trackers import TRACKERS
from konomi.training.trackers.tensorboard import TensorBoard
from konomi.training.trackers.tracker import TrackedRun
from konomi.training.trackers.weights_and_biases import WeightsAndBiases
from konomi.training.tracking import Tracking, chosen_trackers

RECIPE = Recipe(base="tiny", method=LoraConfig(), run=RunConfig(name="sks"))


def step(number, loss=0.5, **parts):
    return Step(number, 0, loss, 1e-4, 0.1, number, 100.0, parts)


def tracked(folder, step=0):
    return TrackedRun(folder, RECIPE, step)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "step-000002-00.png"
    Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)).save(path)
    return path


def test_the_recipe_knows_the_trackers_there_are():
    (names, _) = get_args(get_type_hints(RunConfig, include_extras=True)["trackers"])
    assert get_args(names) == tuple(tracker.name for tracker in TRACKERS)
    assert RunConfig().trackers == ("tensorboard",)


def test_an_absent_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        MissingExtraError, match=r"run\.trackers = 'wandb'.*pip install 'konomi\[trackers\]'"
    ):
        chosen_trackers(("tensorboard", "wandb"))
    assert chosen_trackers(("tensorboard",)) == (TensorBoard,)
    assert chosen_trackers(()) == ()


class Noting:
    """A tracker that keeps what it gets, and fails where it is told to."""

    name = package = "noting"
    extra = ""
    fails_at: str = ""
    error: BaseException = RuntimeError("the server\nis gone")
    gate: threading.Event | None = None
    made: int = 0
    kept: tuple = ()

    def __init__(self, run):
        type(self).made += 1
        self.note = ""
        self._reach("open")

    def _reach(self, what):
        if self.gate is not None:
            assert self.gate.wait(30)
        if what == self.fails_at:
            raise self.error
        type(self).kept += (what,)

    def scalars(self, step, values):
        self._reach(f"scalars {step}")

    def pictures(self, step, paths):
        self._reach(f"pictures {step}")

    def close(self):
        self._reach("close")


def noting(**values):
    return type("Fresh", (Noting,), values)


@pytest.mark.parametrize(
    "error", [RuntimeError("the server\nis gone"), AssertionError("is gone"), SystemExit("is gone")]
)
@pytest.mark.parametrize("place", ["open", "scalars 1", "scalars 3", "pictures 2", "close"])
def test_a_failing_tracker_costs_one_line_and_stays_off(tmp_path, place, error):
    failing, sound = noting(fails_at=place, error=error), noting()
    events = [step(1), step(2), Previewed(2, ()), step(3), step(4), Finished(4, "x")]
    trackers = [Tracking(kind, tracked(tmp_path)) for kind in (failing, sound)]
    seen = list(logged(iter(events), tmp_path, trackers))
    assert [event for event in seen if not isinstance(event, Warned)] == events
    (warned,) = [event for event in seen if isinstance(event, Warned)]
    assert "noting failed and is switched off" in warned.message
    assert "is gone" in warned.message
    assert "\n" not in warned.message
    assert seen[-1] is events[-1]
    assert len(read_log(tmp_path)) == 4
    everything = ("open", "scalars 1", "scalars 2", "pictures 2", "scalars 3", "scalars 4", "close")
    assert sound.kept == everything
    assert failing.kept == everything[: everything.index(place)]
    assert failing.made == 1


def test_a_tracker_that_waits_holds_nobody_up(tmp_path):
    slow = noting(gate=threading.Event())
    events = logged(
        iter([step(1), step(2), Finished(2, "x")]), tmp_path, [Tracking(slow, tracked(tmp_path))]
    )
    assert [next(events), next(events)] == [step(1), step(2)]
    assert slow.kept == ()
    slow.gate.set()
    assert isinstance(next(events), Finished)
    assert slow.kept == ("open", "scalars 1", "scalars 2", "close")


def test_a_run_that_is_closed_closes_its_trackers(tmp_path):
    kind = noting()
    events = logged(iter([step(1), step(2)]), tmp_path, [Tracking(kind, tracked(tmp_path))])
    next(events)
    events.close()
    assert kind.kept == ("open", "scalars 1", "close")


def test_a_second_interrupt_does_not_wait(tmp_path):
    slow = noting(gate=threading.Event())

    def interrupted():
        yield step(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(logged(interrupted(), tmp_path, [Tracking(slow, tracked(tmp_path))]))
    assert slow.kept == ()
    slow.gate.set()


def tensorboard_events(folder):
    """The protocol buffers in TensorBoard's files: length, its checksum, data, its checksum
    (TFRecord).
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_shows_scalars_and_previews_and_a_resumed_run_as_one(tmp_path, picture):
    from io import BytesIO

    folder = tmp_path / "run"
    folder.mkdir()
    first = [
        step(1, 0.5),
        step(2, 0.25, prior=0.125),
        Validated(2, 0.75, 1.0),
        Previewed(2, (str(picture),)),
    ]
    list(logged(iter([*first, step(3, 9.0)]), folder, [Tracking(TensorBoard, tracked(folder))]))
    again = [Tracking(TensorBoard, tracked(folder, step=2))]
    list(logged(iter([step(3, 0.0625), Finished(3, "x")]), folder, again))
    events = list(tensorboard_events(folder / "tensorboard"))
    scalars = [
        (e.step, v.tag, v.simple_value)
        for e in events
        for v in e.summary.value
        if not v.HasField("image")
    ]
    assert [s for s in scalars if s[1] != "learning_rate"] == [
        (1, "loss", 0.5), (2, "loss", 0.25), (2, "prior", 0.125), (2, "validation/loss", 0.75),
        (2, "validation/base", 1.0), (3, "loss", 9.0), (3, "loss", 0.0625),
    ]  # fmt: skip
    ((when, tag, image),) = [
        (e.step, v.tag, v.image) for e in events for v in e.summary.value if v.HasField("image")
    ]
    assert (when, tag) == (2, "preview/0")
    shown = np.asarray(Image.open(BytesIO(image.encoded_image_string)))
    assert np.array_equal(shown, np.asarray(Image.open(picture)))
    # From this step on, TensorBoard hides what earlier files hold.
    assert [e.step for e in events if e.HasField("session_log")] == [3]


class FakeWandb(ModuleType):
    """wandb's functions as far as konomi calls them, with what they were called with."""

    def __init__(self, mode="online", account=True, **known):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.settings = SimpleNamespace(mode=mode, project=None, run_name=None, finish_timeout=0.0)
        self.settings.__dict__.update(known)
        self.account = account
        self.runs = []

    def Settings(self, **values):
        return values

    def Image(self, path):
        return Path(path).name

    def setup(self, settings):
        return SimpleNamespace(settings=self.settings)

    def login(self, prompt):
        assert prompt is False
        return self.account

    def init(self, **options):
        calls = []
        url = (
            "https://wandb.example/run"
            if options["mode"] is None and self.settings.mode == "online"
            else None
        )
        self.runs.append((options, calls))
        return SimpleNamespace(
            url=url,
            log=lambda values, step: calls.append((step, values)),
            finish=lambda: calls.append("finish"),
        )


def run_with(fake, monkeypatch, folder, picture, step_done=0):
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder.mkdir(exist_ok=True)
    events = [
        step(step_done + 1),
        Previewed(step_done + 1, (str(picture),)),
        Finished(step_done + 1, "x"),
    ]
    (kind,) = chosen_trackers(("wandb",))
    assert kind is WeightsAndBiases
    seen = list(logged(iter(events), folder, [Tracking(kind, tracked(folder, step_done))]))
    return [event.message for event in seen if isinstance(event, Warned)]


def test_wandb_is_told_the_recipe_and_goes_on_with_the_same_run(monkeypatch, tmp_path, picture):
    fake = FakeWandb()
    told = run_with(fake, monkeypatch, tmp_path / "dog-2", picture)
    assert told == ["Weights & Biases: https://wandb.example/run"]
    run_with(fake, monkeypatch, tmp_path / "dog-2", picture, step_done=1)
    run_with(fake, monkeypatch, tmp_path / "cat", picture)
    (first, calls), (again, _), (other, _) = fake.runs
    assert (first["project"], first["name"], first["job_type"]) == ("konomi", "dog-2", "lora")
    assert first["config"] == recipe_data(RECIPE)
    assert first["dir"] == str(tmp_path / "dog-2")
    assert (first["mode"], first["resume"]) == (None, "allow")
    assert first["id"] == again["id"] != other["id"]
    assert calls == [
        (1, {"loss": 0.5, "learning_rate": 1e-4}),
        (1, {"preview/0": "step-000002-00.png"}),
        "finish",
    ]


@pytest.mark.parametrize(
    ("mode", "account", "passed"), [("online", False, "offline"), ("offline", False, None)]
)
def test_wandb_without_an_account_records_offline(
    monkeypatch, tmp_path, picture, mode, account, passed
):
    fake = FakeWandb(
        mode=mode, account=account, project="mine", run_name="named", finish_timeout=5.0
    )
    told = run_with(fake, monkeypatch, tmp_path / "run", picture)
    ((options, _),) = fake.runs
    assert options["mode"] == passed
    assert (options["project"], options["name"]) == ("mine", "named")
    assert options["settings"]["finish_timeout"] == 5.0
    assert len(told) == (mode == "online")
    assert all("wandb login" in line and "wandb sync" in line for line in told)

"""kill -9, a full disk or a failing one before every file-system event of a whole short run: what
is lost?

    python bench/faults.py [--every N] [--kinds kill,full,EIO,ENOSPC]

One run is walked through, in a process that has everything imported. Before each event (also in
the middle of each write) it stops: what is on the disk is what a kill would leave; and for each
other kind a forked copy of the process, on a copy of the folder, gets the error and goes on to
whatever end it comes to. EIO and ENOSPC come once; `full` is a disk that stays full. Cache and
temporary folder belong to what is walked through. Then, with that process gone, each different
state is gone on with as a user would: `resume` where there is a checkpoint, else `train`. States
that differ in what nobody reads count as one: going on must not open a file that was being
written, nor look into the temporary folder.

The result must be that of an undisturbed run, bit for bit, with no step done twice after its
checkpoint, every preview there, nothing left over, and each error one clear line.
"""

import argparse
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fault_disk import Disk, copied, follow

os.environ.setdefault("OMP_NUM_THREADS", "1")
KINDS = ("kill", "full", "EIO")
NEEDS_SPACE = ("open", "write", "write the second half", "os.mkdir", "os.link", "os.symlink")
OK, REFUSED, BROKEN = 0, 1, 3
MOST_SECONDS = 120
NUMBERS = re.compile(r"(?<=\.partial-)[0-9a-f-]+(?=-)")
"""Of the process that left a file, in its name."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A fault before an event, what the process said, and the state it left (a name in
    `states`).
    """

    kind: str
    at: int
    event: str
    state: str
    status: int = OK
    said: str = ""

    def __str__(self) -> str:
        return f"{self.kind} before event {self.at} ({self.event})"


def is_in_temporary(name: str) -> bool:
    """Below a trial's folder."""
    return name.split("/")[0] == "tmp"


def is_unread(name: str) -> bool:
    """Whether what a file holds makes no difference: it was being written, or is in the temporary
    folder.
    """
    return is_in_temporary(name) or ".partial-" in name


class Walk:
    """One run, from whose every `every`-th event a fault of each kind branches off."""

    def __init__(self, place: Path, kinds: list[str], every: int) -> None:
        self.work, self.kept, self.states, self.answer = (
            place / n for n in ("work", "kept", "states", "answer")
        )
        self.found = place / "trials.jsonl"
        self.kinds, self.every = kinds, every
        self.disk = Disk(self.work, self.before)
        self.fault = ""
        """The kind, in a branch."""

    def before(self, number: int, event: str, path: str) -> None:
        if self.fault:
            if self.fault == "full" and event in NEEDS_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return
        for offset, kind in enumerate(self.kinds):
            if (number - offset) % self.every == 0:
                self._branch(kind, number, f"{event} {path}")

    def _branch(self, kind: str, number: int, event: str) -> None:
        if kind == "kill":
            copied(self.work, self.kept)
            trial = Trial(kind, number, event, self._state(self.kept))
        else:
            assert threading.active_count() == 1, "a fork would lose the others"
            self.answer.unlink(missing_ok=True)
            self.work.rename(self.kept)
            copied(self.kept, self.work)
            child = os.fork()
            if not child:
                signal.alarm(MOST_SECONDS)
                follow(self.kept, self.work)
                self.fault = kind
                code = getattr(errno, "ENOSPC" if kind == "full" else kind)
                raise OSError(code, os.strerror(code), event)
            _, end = os.waitpid(child, 0)
            said = self.answer.read_text(encoding="utf-8") if self.answer.exists() else "nothing"
            trial = Trial(
                kind, number, event, self._state(self.work), os.waitstatus_to_exitcode(end), said
            )
            self.kept.rename(self.work)
        with self.found.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: getattr(trial, name) for name in Trial.__slots__}) + "\n")

    def _state(self, folder: Path) -> str:
        """Move a folder to the states, unless there is an equal one."""
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if not is_in_temporary(name):
                digest.update(f"{NUMBERS.sub('', name)}\0{path.is_file()}\0".encode())
                whole = path.is_file() and not is_unread(name)
                digest.update(hashlib.sha256(path.read_bytes()).digest() if whole else b"")
        state = digest.hexdigest()[:32]
        if (self.states / state).exists():
            shutil.rmtree(folder)
        else:
            folder.rename(self.states / state)
        return state

    def end(self, status: int, said: str) -> None:
        """Of a branch; the walk itself returns."""
        if self.fault:
            self.disk.busy = True
            self.answer.write_text(said, encoding="utf-8")
            os._exit(status)
        if status:
            raise RuntimeError(said)


def outcome(work: Callable[[], Any]) -> tuple[int, str]:
    """How it ended, and what was said or returned (as JSON)."""
    from konomi.errors import KonomiError

    try:
        return OK, json.dumps(work())
    except KonomiError as error:
        text = str(error)
        return (REFUSED, text) if "\n" not in text else (BROKEN, text)
    except BaseException as error:  # noqa: BLE001 - a child must end here, whatever it met
        return BROKEN, "".join(traceback.format_exception(error))[-2000:]


def in_child(work: Callable[[], Any], *, seconds: int = MOST_SECONDS) -> tuple[int, str]:
    """`outcome`, in a forked process; a negative number is the signal that ended it. 0 seconds: as
    long as it takes.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        status, said = outcome(work)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(said.encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, end = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(end), said


def steps_of(events: Iterator[object]) -> list[int]:
    """Numbers of the steps that a run does."""
    from konomi.training.events import Step

    return [event.step for event in events if isinstance(event, Step)]


def last_step(run: Path) -> int:
    """Of the newest checkpoint, 0 without one."""
    from konomi.training.checkpoint import checkpoint_paths

    paths = checkpoint_paths(run / "checkpoints")
    return int(paths[-1].name[5:]) if paths else 0


def go_on(recipe: Any, work: Path) -> list[int]:
    """What a user does with what is left. Returns the numbers of the steps."""
    import konomi
    from konomi.errors import RunError

    run = work / "run"
    left = {
        str(path)
        for path in work.rglob("*")
        if path.is_file() and is_unread(str(path.relative_to(work)))
    }

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open" and str(arguments[0]) in left:
            raise AssertionError(f"{arguments[0]}: is read, though it was being written")

    sys.addaudithook(audit)
    tempfile.tempdir = str(work / "tmp")
    if not last_step(run):
        return steps_of(konomi.train(recipe))
    try:
        return steps_of(konomi.resume(run))
    except RunError as done:
        if "nothing is missing" not in str(done):
            raise
        return []


def lost(work: Path, whole: Path) -> list[str]:
    """What is not as in an undisturbed run."""
    import torch

    from konomi.storage.tensor_file import read_tensors

    # How rows are spread over the files of a cache depends on where it was cut off.
    wrong = [
        f"left over: {path.name}" for path in (work / "cache").rglob("*") if re_partial(path.name)
    ]
    run, wanted_run = work / "run", whole / "run"
    there, wanted = (
        {p.relative_to(f) for f_ in [f] for p in f_.rglob("*") if p.is_file()}
        for f in (run, wanted_run)
    )
    wrong += [f"missing: {path}" for path in sorted(wanted - there)]
    wrong += [f"left over: {path}" for path in sorted(there - wanted)]
    for path in sorted(p for p in there & wanted if p.suffix == ".safetensors"):
        ours, theirs = read_tensors(run / path), read_tensors(wanted_run / path)
        if ours.keys() != theirs.keys() or not all(
            torch.equal(ours[name], theirs[name]) for name in ours
        ):
            wrong.append(f"other tensors: {path}")
    for path in sorted(p for p in there & wanted if p.suffix == ".png"):
        if (run / path).read_bytes() != (wanted_run / path).read_bytes():
            wrong.append(f"another picture: {path}")
    if log(run) != log(wanted_run):
        wrong.append("another log")
    return wrong


def re_partial(name: str) -> bool:
    """Whether a file is one that was being written."""
    return name.startswith(".partial-") or name.endswith(".tmp")


def log(run: Path) -> list[tuple[object, object]]:
    """Steps and measured losses."""
    rows = [
        json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [(row["step"], row["loss"]) for row in rows]


def gone_on_with(recipe: Any, place: Path, state: str) -> list[str]:
    """What is wrong after going on from a state."""
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    copied(place / "states" / state, work)
    done = last_step(work / "run")
    status, said = in_child(lambda: go_on(recipe, work))
    if status:
        return [f"could not be gone on with: {said or f'signal {-status}'}"]
    steps = json.loads(said)
    extra = [] if len(steps) == recipe.run.steps - done else [f"steps {steps} after {done}"]
    return [*extra, *lost(work, place / "whole")]


def sweep(
    recipe: Any, place: Path, kinds: list[str], every: int = 1
) -> Iterator[tuple[Trial, list[str]]]:
    """Each trial, and what went wrong. `recipe` is `short_run(place)`."""
    import konomi

    steps_of(konomi.train(recipe))
    (place / "work").rename(place / "whole")
    for name in ("states", "work", "work/tmp"):
        (place / name).mkdir()
    walk = Walk(place, kinds, every)

    def walked() -> int:
        tempfile.tempdir = str(place / "work" / "tmp")
        stop_the_clock()
        walk.disk.install()
        walk.end(*outcome(lambda: steps_of(konomi.train(recipe))))
        return walk.disk.count

    status, said = in_child(walked, seconds=0)
    if status:
        raise RuntimeError(said)
    trials = [
        Trial(**json.loads(line)) for line in walk.found.read_text(encoding="utf-8").splitlines()
    ]
    print(f"{said} events, {len({trial.state for trial in trials})} different states", flush=True)
    known: dict[str, list[str]] = {}
    for trial in trials:
        if trial.state not in known:
            known[trial.state] = gone_on_with(recipe, place, trial.state)
        unclear = [f"no clear line: {trial.said}"] if trial.status not in (OK, REFUSED) else []
        yield trial, [*unclear, *known[trial.state]]


def stop_the_clock() -> None:
    """For this process: times and sizes in the log would make equal states differ."""
    from datetime import UTC, datetime

    from konomi.formats import kohya_metadata
    from konomi.training import trainer

    class Noon(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> "Noon":
            return cls(2000, 1, 1, 12, tzinfo=UTC)

    time.perf_counter = lambda: 0.0
    kohya_metadata.datetime = Noon  # type: ignore[misc]
    trainer.peak_memory = lambda device: 0.0  # type: ignore[attr-defined]


def short_run(place: Path) -> Any:
    """Three steps of a LoRA on a random base: checkpoints, saves, validation and previews on the
    way and at the end.
    """
    import torch
    from PIL import Image

    import konomi
    from konomi.models.random_base import random_base
    from konomi.models.save import save_folder
    from konomi.models.tokenizer import vocabulary_of_merges

    # One transformer, in the middle: each tensor of an adapter is an event or two in each of its
    # files.
    levels = {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    base = random_base("sd1", configs={"unet": levels}, vocabulary=vocabulary_of_merges(()))
    save_folder(base, place / "base", dtype=torch.float32)
    (place / "dog").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 90, 200)).save(place / "dog" / f"{index}.png")
    often = [
        "run.checkpoint_every=1",
        "run.save_every=2",
        "run.preview_every=2",
        "run.validate_every=2",
    ]
    cheap = [
        "preview.steps=1",
        'preview.prompts=["a dog"]',
        "validation.timesteps=1",
        "run.trackers=[]",
    ]
    return konomi.recipe_from_flags(
        "lora",
        images=[place / "dog"],
        base=str(place / "base"),
        trigger="sks",
        output=str(place / "work" / "run"),
        steps=3,
        overrides=[
            *often,
            *cheap,
            "method.rank=1",
            "method.targets=cross_attention.kv",
            "data.workers=0",
            f'data.cache.folder="{place / "work" / "cache"}"',
        ],
    )


def main() -> int:
    """Print the table; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--every", type=int, default=1, help="only every N-th event (default: each)"
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    states: dict[str, set[str]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for trial, wrong in sweep(short_run(place), place, options.kinds.split(","), options.every):
            tried[trial.kind] += 1
            failed[trial.kind] += bool(wrong)
            states.setdefault(trial.kind, set()).add(trial.state)
            for line in wrong:
                print(f"{trial}: {line}", flush=True)
    print("| fault | injected | different states | survived |\n|---|---|---|---|")
    for kind, count in tried.items():
        print(f"| {kind} | {count} | {len(states[kind])} | {count - failed[kind]} |")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if sum(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

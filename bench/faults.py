"""kill -9, a full disk or a failing one before every file-system event of a whole short run: what is lost?

    python bench/faults.py [--every N] [--kinds kill,ENOSPC,EIO]

Each trial is a process of its own, forked from this one: it trains until the chosen event, where it is killed or the
system refuses. Then the folder is gone on with, as a user would: `resume` where there is a checkpoint, else `train`.
The result must be that of an undisturbed run, bit for bit, with no step done twice after its checkpoint, every preview
there, and nothing left over.
"""

import argparse
import errno
import json
import os
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
AUDITED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime"}
OK, KILLED, REFUSED, BROKEN = 0, -signal.SIGKILL, 1, 3


@dataclass
class Injector:
    """Counts what a process does to files below a folder, and strikes before event number `at`."""

    folder: str
    kind: str = ""
    at: int = -1
    count: int = 0

    def event(self, name: str, path: object) -> None:
        """Before something is done to a path."""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(self.folder):
            return
        number, self.count = self.count, self.count + 1
        if number != self.at:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, self.kind), os.strerror(getattr(errno, self.kind)), str(path))

    def install(self) -> None:
        """For good: a process that is injected into ends soon."""

        def audit(name: str, arguments: tuple[object, ...]) -> None:
            if name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
                self.event("open", arguments[0])
            elif name in AUDITED:
                self.event(name, arguments[0])

        def before(name: str, call: Callable[..., object]) -> Callable[..., object]:
            def told(descriptor: int, *arguments: object) -> object:
                self.event(name, Path(f"/proc/self/fd/{descriptor}").readlink())
                return call(descriptor, *arguments)

            return told

        sys.addaudithook(audit)
        os.fsync = before("fsync", os.fsync)  # type: ignore[assignment]
        os.write = before("write", os.write)  # type: ignore[assignment]


def in_child(work: Callable[[], dict[str, object]]) -> tuple[int, dict[str, object]]:
    """Exit status and what `work` returned, in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = BROKEN
        try:
            os.close(reader)
            answer = json.dumps(work()).encode()
            status = OK
        except OSError as error:
            answer = json.dumps({"error": f"OSError {error}"}).encode()
        except BaseException as error:  # noqa: BLE001 - a child must end here, whatever it met
            from konomi.errors import KonomiError

            status = REFUSED if isinstance(error, KonomiError) else BROKEN
            answer = json.dumps({"error": "".join(traceback.format_exception(error))[-2000:]}).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, state = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(state), json.loads(text) if text else {}


def steps_of(events: Iterator[object]) -> list[int]:
    """Numbers of the steps that a run does."""
    from konomi.training.events import Step

    return [event.step for event in events if isinstance(event, Step)]


def last_step(folder: Path) -> int:
    """Of the newest checkpoint, 0 without one."""
    from konomi.training.checkpoint import checkpoint_paths

    paths = checkpoint_paths(folder / "checkpoints")
    return int(paths[-1].name[5:]) if paths else 0


def go_on(recipe: object, folder: Path) -> dict[str, object]:
    """What a user does with what is left."""
    import konomi
    from konomi.errors import RunError

    if not last_step(folder):
        return {"steps": steps_of(konomi.train(recipe))}  # type: ignore[arg-type]
    try:
        return {"steps": steps_of(konomi.resume(folder))}
    except RunError as done:
        if "nothing is missing" not in str(done):
            raise
        return {"steps": []}


def lost(folder: Path, whole: Path) -> list[str]:
    """What is not as in an undisturbed run."""
    import torch

    from konomi.storage.tensor_file import read_tensors

    wrong = []
    there, wanted = ({p.relative_to(f) for f_ in [f] for p in f_.rglob("*") if p.is_file()} for f in (folder, whole))
    wrong += [f"missing: {path}" for path in sorted(wanted - there)]
    wrong += [f"left over: {path}" for path in sorted(there - wanted)]
    for path in sorted(p for p in there & wanted if p.suffix == ".safetensors"):
        ours, theirs = read_tensors(folder / path), read_tensors(whole / path)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            wrong.append(f"other tensors: {path}")
    for path in sorted(p for p in there & wanted if p.suffix == ".png"):
        if (folder / path).read_bytes() != (whole / path).read_bytes():
            wrong.append(f"another picture: {path}")
    if [row.get("loss") for row in log(folder)] != [row.get("loss") for row in log(whole)]:
        wrong.append("another log")
    return wrong


def log(folder: Path) -> list[dict[str, object]]:
    """The entries of steps."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "kind" not in row]


def trial(recipe: object, folder: Path, whole: Path, kind: str, at: int) -> list[str]:
    """What went wrong after a strike."""
    import konomi

    recipe = replace(recipe, run=replace(recipe.run, output=str(folder)))  # type: ignore[type-var,attr-defined]

    def struck() -> dict[str, object]:
        injector = Injector(str(folder), kind, at)
        injector.install()
        return {"steps": steps_of(konomi.train(recipe))}  # type: ignore[arg-type]

    status, told = in_child(struck)
    if status == BROKEN:
        return [f"no clear line: {told.get('error')}"]
    done, total = last_step(folder), recipe.run.steps  # type: ignore[attr-defined]
    status, told = in_child(lambda: go_on(recipe, folder))
    if status != OK:
        return [f"could not be gone on with: {told.get('error')}"]
    extra = [] if len(told["steps"]) == total - done else [f"{told['steps']} done again after {done}"]  # type: ignore[arg-type]
    return [*extra, *lost(folder, whole)]


def sweep(recipe: object, place: Path, kinds: list[str], every: int = 1) -> Iterator[tuple[str, int, list[str]]]:
    """(kind, event, what went wrong) of each trial. `recipe` is a short run; `place` an empty folder."""
    import konomi

    whole = place / "whole"
    recipe_whole = replace(recipe, run=replace(recipe.run, output=str(whole)))  # type: ignore[type-var,attr-defined]

    def counted() -> dict[str, object]:
        injector = Injector(str(whole))
        injector.install()
        steps_of(konomi.train(recipe_whole))
        return {"events": injector.count}

    status, told = in_child(counted)
    if status != OK:
        raise RuntimeError(str(told))
    events = told["events"]
    print(f"{events} events", flush=True)
    assert isinstance(events, int)
    for offset, kind in enumerate(kinds):
        for at in range(offset % every, events, every):
            yield kind, at, trial(recipe, place / f"{kind}-{at}", whole, kind, at)


def short_run(place: Path) -> object:
    """Three steps of a LoRA on a random base: checkpoints, saves, validation and previews on the way and at the end."""
    import torch
    from PIL import Image

    import konomi
    from konomi.models.save import save_folder
    from konomi.models.scratch import random_base

    save_folder(random_base("sd1"), place / "base", dtype=torch.float32)
    (place / "dog").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 90, 200)).save(place / "dog" / f"{index}.png")
    often = ["run.checkpoint_every=1", "run.save_every=2", "run.preview_every=2", "run.validate_every=2"]
    cheap = ["preview.steps=1", 'preview.prompts=["a dog"]', "validation.timesteps=1", "run.trackers=[]"]
    return konomi.recipe_from_flags(
        "lora",
        images=[place / "dog"],
        base=str(place / "base"),
        trigger="sks",
        output=str(place / "first"),
        steps=3,
        overrides=[
            *often,
            *cheap,
            "method.rank=1",
            "method.targets=cross_attention.kv",
            "data.workers=0",
            f'data.cache.folder="{place / "cache"}"',
        ],
    )


def main() -> int:
    """Print the table; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every N-th event (default: each)")
    parser.add_argument("--kinds", default="kill,ENOSPC,EIO")
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = short_run(place)
        steps_of(__import__("konomi").train(recipe))
        for kind, at, wrong in sweep(recipe, place, options.kinds.split(","), options.every):
            tried[kind] += 1
            failed[kind] += bool(wrong)
            for line in wrong:
                print(f"{kind} before event {at}: {line}", flush=True)
    print("| Fault | injected | survived |\n|---|---|---|")
    for kind, count in tried.items():
        print(f"| {kind} | {count} | {count - failed[kind]} |")
    return 1 if sum(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

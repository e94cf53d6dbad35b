"""Candidates trained as tasks of Ray, on this machine or on a cluster.

Each run is one task with the cores and the GPU that it needs. Where a task sees the comparison's
folder (one machine, or shared storage), it trains there; elsewhere it trains in a temporary folder
of its machine, and its files come back through Ray's object store. A task whose worker dies is
tried again by Ray, and goes on from the run's last checkpoint where that is still to be seen.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from konomi.errors import KonomiError, MissingExtraError, RunError
from konomi.evaluation.plan import PlannedRun
from konomi.storage.atomic import write_file, write_text
from konomi.tasks.candidate_processes import (
    WAIT_SECONDS,
    FromRun,
    Trained,
    environment_of,
    event_of,
)
from konomi.tasks.candidate_worker import train_candidate
from konomi.tasks.planning import recipe_path, run_folder
from konomi.training.events import Finished, Step
from konomi.training.stop import Stop

RETRIES = 3
"""How often a run goes on after the death of its worker."""
TOKEN = ".ray-token"
"""In the comparison's folder: what a task must read there to train there."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What a task needs to know of its run."""

    run: str
    recipe: str
    """The text of its recipe."""
    folder: str
    """Of the comparison, as whoever started it sees it."""
    token: str
    until: int
    """As in `train_candidate`."""


def train_on_ray(
    runs: Sequence[PlannedRun],
    folder: Path,
    *,
    address: str,
    jobs: int | None,
    threads: int,
    stop: Stop,
    until: Mapping[str, int] | None = None,
) -> Generator[FromRun, None, None]:
    """As `train_in_processes`, on Ray.

    address: of a running cluster; empty: one of this machine alone, unless RAY_ADDRESS names one.
    jobs: at most so many at a time; None: as many as fit.

    Raises MissingExtraError without the package, RunError for a cluster that does not answer.
    """
    ray = _connected(address, (jobs or len(runs)) * threads)
    folder = folder.absolute()
    token = secrets.token_hex(8)
    write_text(folder / TOKEN, token)
    from ray.util.queue import Queue

    told = Queue(actor_options={"num_cpus": 0})
    remote = _remote(ray, threads)
    waiting, running = list(runs), dict[Any, str]()
    finished = dict[str, Trained]()
    try:
        while running or (waiting and not stop.requested):
            while waiting and (jobs is None or len(running) < jobs) and not stop.requested:
                run = waiting.pop(0)
                recipe = recipe_path(folder, run.id).read_text(encoding="utf-8")
                task = _Task(run.id, recipe, str(folder), token, (until or {}).get(run.id, 0))
                running[remote.remote(asdict(task), told)] = run.id
            if stop.requested:
                for reference in running:
                    ray.cancel(reference)
            done, _ = ray.wait(list(running), timeout=WAIT_SECONDS)
            yield from _heard(told)
            for reference in done:
                name = running.pop(reference)
                finished[name] = _outcome(ray, reference, run_folder(folder, name))
                yield FromRun(name, finished[name])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        told.shutdown(force=True)
        (folder / TOKEN).unlink(missing_ok=True)


def _connected(address: str, cores: int) -> Any:
    """The package, joined to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Warnings about what a later Ray does by default, which is set here one way or the other.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as missing:
        raise MissingExtraError("ray", "ray", "--on ray") from missing
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address or None, **quiet)
        else:
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise RunError(
            f"--on ray:{address}: no cluster answers there ({said}). `ray start --head` starts one."
        ) from error
    return ray


def _remote(ray: Any, threads: int) -> Any:
    """The task, with what each run needs. No more cores than the largest machine has, for it would
    wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = min(threads, max(int(node.get("CPU", 1)) for node in nodes))
    gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    options = {"num_cpus": cores, "num_gpus": gpus, "max_retries": RETRIES}
    # Another number of threads rounds otherwise.
    environment = {"env_vars": environment_of(threads)}
    return ray.remote(**options, runtime_env=environment)(_train)


def _train(values: dict[str, Any], told: Any) -> dict[str, Any]:
    """In the worker: train, and hand over the files where the folder is not the same there."""
    task = _Task(**values)
    shared = _reads(Path(task.folder) / TOKEN) == task.token
    home = Path(task.folder) if shared else Path(tempfile.gettempdir()) / f"konomi-{task.token}"
    folder, recipe = run_folder(home, task.run), recipe_path(home, task.run)
    folder.mkdir(parents=True, exist_ok=True)
    if not shared:
        write_text(recipe, task.recipe)
    last: Finished | None = None
    try:
        for event in train_candidate(recipe, folder, Stop(), until=task.until):
            if isinstance(event, Finished):
                last = event
            elif not isinstance(event, Step) or event.step % 10 == 0:
                told.put((task.run, type(event).__name__, asdict(event)))
    except KonomiError as error:
        return asdict(Trained(failure=str(error)))
    if last is None or last.interrupted:
        return asdict(Trained(0 if last is None else last.step))
    result = asdict(Trained(last.step, last.path))
    if not shared:
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
        result["files"] = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _reads(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _heard(told: Any) -> Generator[FromRun, None, None]:
    """What the tasks have told since the last time."""
    count = told.size()
    for run, kind, values in told.get_nowait_batch(count) if count else ():
        event = event_of(kind, values)
        if event is not None:
            yield FromRun(run, event)


def _outcome(ray: Any, reference: Any, folder: Path) -> Trained:
    """How a task ended; its files are then in the run folder."""
    from ray.exceptions import RayError

    try:
        values = ray.get(reference)
    except RayError as error:
        said = " ".join(str(error).split())
        return Trained(failure=f"Ray could not finish it: {said[:300]}")
    files = values.pop("files", None)
    if files is not None:
        _put(files, folder)
        values["result"] = str(folder / Path(values["result"]).name)
    return Trained(**values)


def _put(files: dict[str, bytes], folder: Path) -> None:
    """The newest checkpoint's note of the result last: it says that all is there."""
    for name in sorted(files, key=lambda name: name.endswith("result.json")):
        with write_file(folder / name) as temporary:
            temporary.write_bytes(files[name])

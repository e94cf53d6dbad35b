"""One candidate of a comparison, trained in a process of its own: `python -m` with its recipe and
its run folder.

What happens is told as a JSON object a line on standard output. On standard input the word `stop`
asks to save and end; that it closes means that whoever started this process is gone.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from konomi.errors import KonomiError
from konomi.tasks.recipes import read_recipe
from konomi.tasks.run_folder import finished_result, moved
from konomi.tasks.training import resume, train
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.events import Event, Finished, Step
from konomi.training.stop import Stop, stop_on_input

STEP_SECONDS = 0.5
"""Steps are told so often; what else happens always."""


def train_candidate(recipe: Path, folder: Path, stop: Stop) -> Iterator[Event]:
    """Train, go on where it stopped, or say that all is there: whatever the folder needs.

    recipe: the recipe's file.
    folder: the run folder; it may be new.
    stop: as in `konomi.train`.

    Raises KonomiError as `train` and `resume` do.
    """
    done = finished_result(folder)
    if done is not None:
        step, result = done
        yield Finished(step, str(result))
    elif checkpoint_paths(folder / "checkpoints"):
        yield from resume(folder, stop=stop)
    else:
        yield from train(moved(read_recipe(recipe), folder), stop=stop)


def told(event: Event) -> str:
    """An event as a line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def main(arguments: list[str]) -> int:
    """0 where the candidate is trained or was stopped; 1 after a line that says why not."""
    recipe, folder = map(Path, arguments)
    stop = Stop()
    threading.Thread(target=stop_on_input, args=(sys.stdin, stop), daemon=True).start()
    try:
        last = 0.0
        for event in train_candidate(recipe, folder, stop):
            if isinstance(event, Step):
                if time.monotonic() - last < STEP_SECONDS:
                    continue
                last = time.monotonic()
            print(told(event), flush=True)
    except KonomiError as error:
        print(json.dumps({"event": "Failed", "reason": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

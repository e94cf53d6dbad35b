"""One candidate of a comparison, trained in a process of its own: `python -m` with its recipe, its
run folder and the step to stop after (0: none).

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
from konomi.training.checkpoint import last_step
from konomi.training.events import Event, Finished, Saved, Step
from konomi.training.stop import Stop, stop_on_input

STEP_SECONDS = 0.5
"""Steps are told so often; what else happens always."""


def train_candidate(recipe: Path, folder: Path, stop: Stop, *, until: int = 0) -> Iterator[Event]:
    """Train, go on where it stopped, or say that all is there: whatever the folder needs.

    recipe: the recipe's file.
    folder: the run folder; it may be new.
    stop: as in `konomi.train`.
    until: stop after the file that is saved at this step; 0: go to the end.

    Raises KonomiError as `train` and `resume` do.
    """
    done, there = finished_result(folder), last_step(folder / "checkpoints")
    if done is not None:
        step, result = done
        yield Finished(step, str(result))
        return
    if until and there >= until:
        yield Finished(there, "", interrupted=True)
        return
    if there:
        events = resume(folder, stop=stop)
    else:
        events = train(moved(read_recipe(recipe), folder), stop=stop)
    for event in events:
        if until and isinstance(event, Saved) and event.step >= until:
            stop.request()
        yield event


def told(event: Event) -> str:
    """An event as a line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def main(arguments: list[str]) -> int:
    """0 where the candidate is trained or was stopped; 1 after a line that says why not."""
    recipe, folder, until = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    stop = Stop()
    threading.Thread(target=stop_on_input, args=(sys.stdin, stop), daemon=True).start()
    try:
        last = 0.0
        for event in train_candidate(recipe, folder, stop, until=until):
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

"""Weights & Biases, with its files in `wandb/`. Without an account or a network it records offline.

Everything that its environment variables set (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME,
...) counts.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from konomi.config.write import recipe_data
from konomi.storage.atomic import write_text
from konomi.training.trackers.tracker import TrackedRun

PROJECT = "konomi"
FINISH_SECONDS = 600.0
"""How long the last upload may take. What is not sent by then lies in the run folder for `wandb
sync`."""


class WeightsAndBiases:
    """One run there for one run folder, however many sittings it takes."""

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "trackers"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        known = wandb.setup(settings=wandb.Settings(silent=True)).settings
        # Never ask for a key in the middle of a training, nobody may be there to answer.
        no_account = known.mode == "online" and not wandb.login(prompt=False)
        self.run = wandb.init(
            project=known.project or PROJECT,
            name=known.run_name or run.folder.resolve().name,
            job_type=run.recipe.method.kind,
            config=recipe_data(run.recipe),
            dir=str(run.folder),
            id=_run_id(run.folder / self.name),
            resume="allow",
            mode="offline" if no_account else None,
            # Someone's Python program may have a run of its own open.
            reinit="create_new",
            settings=wandb.Settings(
                # Its lines would run through the progress bar, and it would keep the bar as a log.
                silent=True,
                console="off",
                # The repository konomi happens to be started in has nothing to do with the run.
                disable_git=True,
                disable_code=True,
                use_dot_wandb=False,
                finish_timeout=known.finish_timeout or FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self.note = f"Weights & Biases: {self.run.url}" if self.run.url else ""
        if no_account:
            self.note = (
                "Weights & Biases has no account here (`wandb login`), so this run is recorded "
                f"offline; later `wandb sync {run.folder / self.name}/offline-run-*` sends it."
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        import wandb

        self.run.log(
            {f"preview/{index}": wandb.Image(str(path)) for index, path in enumerate(paths)},
            step=step,
        )

    def close(self) -> None:
        self.run.finish()


def _run_id(folder: Path) -> str:
    """The id of the run there that belongs to this run folder; chosen in the first sitting."""
    path = folder / "run-id.txt"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()

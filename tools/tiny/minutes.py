"""Train the denoiser of `tiny` on for some minutes: what to do with a card that is there for a
moment.

    python -m tools.tiny.minutes --data ../shared/data --minutes 6 --device cuda --lot 7 --output
    out/tiny python -m tools.tiny.minutes --data ../shared/data --minutes 1 --device cpu --lot 7
    --output out/tiny    # rehearsal

Scenes are composed by all cores in the first fifth of the time; a burst of steps tells how many
fit into the rest, and so many are made, with a rate that comes to rest. The folder holds a whole
base: look at its pictures (`python -m bench.tiny`) before it takes the place of the present one.
Another `--lot` is other scenes: start the next time from the result with `--base`.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from tools.tiny import pack
from tools.tiny.dataset import known_sprites, write_mixture
from tools.tiny.denoiser import denoiser_recipe, train_denoiser
from tools.tiny.scenes import SIDE
from tools.tiny.unet import new_unet

import konomi
from konomi.config.recipe import Recipe
from konomi.models.load import load_base
from konomi.training.events import Step

COMPOSING = 0.2
"""Share of the time for scenes."""
RESERVE = 20.0
"""Seconds for reading, encoding the last scenes, packing."""
SHARD = 256
"""Scenes that one process composes at a time."""
KINDS = 3
"""Folders of a shard: all, favourites, pairs."""
BURST = 24
"""Steps of the trial; the later half is timed."""
SHARDS_A_LOT = 4096
RATE = 8e-4
"""What the last run of `tools.tiny.build` begins with."""


def main() -> None:
    """Compose, measure, train, pack."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny.minutes", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of emoji-noto.zip, -twemoji.zip, -blob.zip"
    )
    parser.add_argument("--minutes", type=float, required=True, help="of the whole command")
    parser.add_argument(
        "--output", type=Path, required=True, help="a new folder for the packed base"
    )
    parser.add_argument(
        "--base", type=Path, default=Path("src/konomi/builtin/tiny"), help="where it starts"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("tiny-minutes"), help="scenes, caches, checkpoints"
    )
    parser.add_argument(
        "--lot", type=int, required=True, help="which scenes; not one that was trained on before"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    shards = compose(
        options.data, options.work / "scenes", options.lot, seconds=60 * options.minutes * COMPOSING
    )
    print(f"{len(shards) // KINDS * SHARD} scenes", flush=True)
    recipe = denoiser_recipe(
        options.base, shards, options.work / "run", options.work / "cache", size=str(SIDE),
        steps=BURST,
        batch=options.batch, rate=RATE, schedule="cosine", seed=options.lot, device=options.device,
    )  # fmt: skip
    if options.device == "cpu":
        recipe = replace(recipe, run=replace(recipe.run, precision="auto"))
    seconds = seconds_per_step(recipe, options.work / "trial")
    steps = max(BURST, int((deadline - time.monotonic() - RESERVE) / seconds))
    print(f"{seconds:.3f} s a step: {steps} steps", flush=True)
    trained = train_denoiser(
        replace(recipe, run=replace(recipe.run, steps=steps, checkpoint_every=max(1, steps // 4)))
    )
    shutil.copytree(options.base, options.output, dirs_exist_ok=True)
    unet = new_unet()
    unet.load_state_dict(load_base(trained).state("denoiser"))
    pack.pack_unet(unet, options.output)
    print(f"{options.output}: {pack.weigh(options.output) / 2**20:.2f} MiB", flush=True)


def compose(data: Path, folder: Path, lot: int, *, seconds: float) -> tuple[Path, ...]:
    """Folders of SHARD scenes each, as many as all cores compose in the time; at least one."""
    deadline = time.monotonic() + seconds
    cores = os.cpu_count() or 1
    found: list[Path] = []
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        while not found or time.monotonic() < deadline:
            numbers = range(len(found) // KINDS, len(found) // KINDS + cores)
            made = pool.map(partial(_shard, data, folder, lot), numbers)
            found += [part for parts in made for part in parts]
    return tuple(found)


def _shard(data: Path, folder: Path, lot: int, number: int) -> tuple[Path, ...]:
    # Seeds of shards lie as far apart as those of lots, and beyond them.
    return write_mixture(
        known_sprites(data),
        folder / f"{number:05d}",
        count=SHARD,
        side=SIDE,
        lot=lot * SHARDS_A_LOT + number,
    )


def seconds_per_step(recipe: Recipe, output: Path) -> float:
    """Median of the later half of a short run, which also fills the caches."""
    recipe = replace(recipe, run=replace(recipe.run, output=str(output), steps=BURST))
    times = [
        event.seconds for event in konomi.train(recipe, overwrite=True) if isinstance(event, Step)
    ]
    return statistics.median(times[BURST // 2 :])


if __name__ == "__main__":
    main()

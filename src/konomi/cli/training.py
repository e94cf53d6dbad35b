"""`konomi train`, `konomi resume` and `konomi demo`."""

import shlex
from pathlib import Path

from konomi.cli.aesthetic import NAME as AESTHETIC
from konomi.cli.aesthetic import train_aesthetic
from konomi.cli.arguments import ArgumentParser
from konomi.cli.recipes import add_recipe_flags, recipe_of


def train(arguments: list[str]) -> int:
    """Train by a recipe, or by a method and a folder of images."""
    if arguments[:1] == [AESTHETIC]:
        return train_aesthetic(arguments[1:])
    parser = ArgumentParser(
        prog="konomi train",
        usage="konomi train RECIPE [key=value ...]\n"
        "       konomi train CARD [--images DIR] [--base BASE] [options] [key=value ...]\n"
        "       konomi train METHOD --images DIR --base BASE [options] [key=value ...]\n"
        "       konomi train aesthetic --images DIR --base BASE [options]",
        description="Train. Every setting of a recipe can be changed by key=value, for example "
        "method.rank=8.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        metavar="RECIPE|METHOD",
        nargs="+",
        help="a recipe file, a recipe card (NAME.card.png), a method (lora, full, ...), or an "
        "algorithm of lora (loha, ...)",
    )
    add_recipe_flags(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start over even if the run folder already has a run",
    )
    options = parser.parse_intermixed_args(arguments)
    recipe = recipe_of(parser, options)

    from konomi import tasks
    from konomi.cli.progress import follow

    return follow(tasks.train(recipe, overwrite=options.overwrite), resume_command=_resume_command)


def resume(arguments: list[str]) -> int:
    """Go on where a run stopped."""
    parser = ArgumentParser(
        prog="konomi resume",
        description="Continue a run exactly where it stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument(
        "--steps", metavar="N", type=int, help="new total number of optimiser steps"
    )
    parser.add_argument("--epochs", metavar="N", type=int, help="new total number of epochs")
    parser.add_argument(
        "--keep-schedule",
        action="store_true",
        help="keep the old learning rate schedule; its last value stays",
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="continue even if images, captions or the base have changed",
    )
    options = parser.parse_args(arguments)

    from konomi import tasks
    from konomi.cli.progress import follow

    events = tasks.resume(
        options.run,
        steps=options.steps,
        epochs=options.epochs,
        keep_schedule=options.keep_schedule,
        allow_changes=options.allow_changes,
    )
    return follow(events, resume_command=_resume_command)


def branch(arguments: list[str]) -> int:
    """Go on from a checkpoint with other settings."""
    parser = ArgumentParser(
        prog="konomi branch",
        usage="konomi branch RUN --at STEP [key=value ...] [--output RUN2]",
        description="Go back to a checkpoint and go on with other settings, in a folder of its "
        "own.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument(
        "changes", metavar="key=value", nargs="*", help="settings to change, as in train"
    )
    parser.add_argument(
        "--at", metavar="STEP", type=int, required=True, help="a step the run has a checkpoint of"
    )
    parser.add_argument(
        "--output", metavar="RUN2", type=Path, help="the new run folder (default: RUN-2, ...)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start over even if the run folder already has a run",
    )
    options = parser.parse_intermixed_args(arguments)

    from konomi import tasks
    from konomi.cli.progress import follow

    events = tasks.branch(
        options.run,
        options.at,
        options.changes,
        output=options.output,
        overwrite=options.overwrite,
    )
    return follow(events, resume_command=_resume_command)


def demo(arguments: list[str]) -> int:
    """Train on what konomi brings along."""
    parser = ArgumentParser(
        prog="konomi demo",
        description="Train three methods on the built-in base and sample images, measure them, and "
        "say which to keep; a CPU is enough. Ends with a page to look at.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("konomi-demo"),
        help="output folder (default: %(default)s)",
    )
    options = parser.parse_args(arguments)

    from konomi import tasks
    from konomi.cli.evaluation_view import print_summary
    from konomi.cli.progress import follow
    from konomi.evaluation.store import read_summary

    code = follow(
        tasks.demo(options.output), resume_command=lambda _: "konomi demo", done="Look at {path}"
    )
    if code == 0:
        print_summary(read_summary(options.output))
    return code


def _resume_command(run: Path) -> str:
    return f"konomi resume {shlex.quote(str(run))}"

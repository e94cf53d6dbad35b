"""`konomi benchmark`."""

import argparse
from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.cli.comparing import split_words

KINDS = ("dreambooth",)


def benchmark(arguments: list[str]) -> int:
    """Measure methods by the protocol of a published work, which the first word names."""
    parser = ArgumentParser(
        prog="konomi benchmark",
        description="Measure methods by the protocol of a published work.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "kind",
        metavar="NAME",
        choices=KINDS,
        help="dreambooth: 30 subjects, 25 prompts, 4 pictures of each",
    )
    parser.parse_args(arguments[:1])
    # A parser of its own, so that settings may stand after options as everywhere else.
    chosen = ArgumentParser(prog="konomi benchmark dreambooth", allow_abbrev=False)
    _add_dreambooth(chosen)
    return _dreambooth(chosen.parse_intermixed_args(arguments[1:]), chosen)


def _add_dreambooth(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The protocol of the DreamBooth paper: each method learns each subject alone, 4 pictures "
        "of each of its 25 prompts are measured, and the paper's table stands beside. Asked again "
        "after an interruption it goes on where it was."
    )
    add = parser.add_argument
    add(
        "what",
        metavar="METHOD",
        nargs="+",
        help="methods or recipe files, and settings for all of them (key=value)",
    )
    add(
        "--data",
        metavar="DIR",
        type=Path,
        required=True,
        help="the folder of the data set, with prompts_and_classes.txt",
    )
    add(
        "--base",
        required=True,
        help="`tiny` (built in), a folder, a .safetensors or .ckpt file, or a hub id",
    )
    add(
        "--subject",
        metavar="NAME",
        action="append",
        default=[],
        help="only this one; may be repeated",
    )
    add(
        "--trigger",
        metavar="WORD",
        default="sks",
        help="the word that means the subject (default: %(default)s)",
    )
    add("--seed", metavar="S", type=int, help="random seed for order, noise and timesteps")
    add(
        "--budget",
        metavar="UNIT=N",
        default="",
        help="what each candidate may spend: steps=600, images=2400 or minutes=10",
    )
    add(
        "--jobs",
        metavar="N",
        type=int,
        help="runs at a time (default: 1; on Ray as many as fit)",
    )
    add(
        "--on",
        metavar="ray[:ADDRESS]",
        default="",
        help="train on Ray: on this machine, or on a cluster",
    )
    add(
        "--output",
        metavar="DIR",
        default="benchmarks/dreambooth",
        help="output folder (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON for programs")


def _dreambooth(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    methods, changes = split_words(options.what)
    if not methods:
        parser.error("name the methods to measure")

    from konomi import tasks
    from konomi.cli.comparison_view import follow_benchmark

    events = tasks.benchmark_dreambooth(
        methods,
        data=options.data,
        base=options.base,
        trigger=options.trigger,
        subjects=options.subject,
        seed=options.seed,
        overrides=changes,
        budget=options.budget,
        jobs=options.jobs,
        on=options.on,
        output=options.output,
    )
    return follow_benchmark(events, as_json=options.json)

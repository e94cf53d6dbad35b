"""`konomi compare`."""

from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.cli.recipes import add_subject_flags, attached_of, check_folders


def compare(arguments: list[str]) -> int:
    """Train candidates at an equal budget, measure them alike, and say which to keep."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    what, changes = split_words(options.what)
    if not what:
        parser.error("name the methods or recipes to compare")
    check_folders(options)

    from konomi import tasks
    from konomi.cli.comparison_view import follow_comparison

    events = tasks.compare(
        what,
        images=options.images,
        base=options.base or "",
        trigger=options.trigger,
        class_noun=options.class_noun,
        prior_images=options.prior,
        seed=options.seed,
        overrides=[*attached_of(options), *changes],
        budget=options.budget,
        sweep=options.sweep,
        search=options.search,
        saves=options.saves,
        jobs=options.jobs,
        on=options.on,
        output=options.output,
        plan_only=options.plan,
    )
    return follow_comparison(events, as_json=options.json)


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Candidates, and settings for all of them."""
    what = [word for word in words if "=" not in word or Path(word).is_file()]
    return what, [word for word in words if word not in what]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="konomi compare",
        usage="konomi compare METHOD|RECIPE... --images DIR --base BASE [options] [key=value ...]",
        description="Train candidates at an equal budget on the same pictures, measure their files "
        "beside the untouched base, and say which one to keep and why. Asked again after an "
        "interruption it goes on where it was.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "what",
        metavar="METHOD|RECIPE",
        nargs="+",
        help="methods (lora, textual_inversion, ...) or recipe files",
    )
    add_subject_flags(parser)
    add("--seed", metavar="S", type=int, help="random seed for order, noise and timesteps")
    add(
        "--budget",
        metavar="UNIT=N",
        default="",
        help="what each candidate may spend: steps=600, images=2400 or minutes=10",
    )
    add(
        "--sweep",
        metavar="KEY=V1,V2",
        action="append",
        default=[],
        help="a run for each value of a setting; may be repeated",
    )
    add(
        "--search",
        metavar="N",
        type=int,
        default=0,
        help="choose the settings of N runs among the sweep's by what earlier runs came to; "
        "--sweep may then be a range, KEY=LOW..HIGH",
    )
    add(
        "--saves",
        metavar="N",
        type=int,
        help="files of each run that are measured (default: 4, of whole models 2)",
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
    add("--output", metavar="DIR", help="where to (default: runs/compare-NAME)")
    add("--plan", action="store_true", help="show runs, steps and time, and stop there")
    add("--json", action="store_true", help="print JSON for programs")
    return parser

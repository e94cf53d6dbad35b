"""`konomi evaluate`."""

from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.errors import RecipeError
from konomi.language import translated


def evaluate(arguments: list[str]) -> int:
    """Measure saved files; prints a table, and the suggestion last."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    settings = [word for word in options.what if _is_setting(word)]
    sources = [word for word in options.what if not _is_setting(word)]
    if not sources:
        parser.error("name a run, or files")

    from konomi import tasks
    from konomi.cli.evaluation_view import print_summary
    from konomi.cli.plain import json_text
    from konomi.cli.progress import finished_or_interrupted
    from konomi.evaluation.store import read_summary

    events = tasks.evaluate(
        sources,
        base=options.base or "",
        adapters=options.adapters,
        images=options.images,
        prompts=options.prompts,
        weights=_weights(options.weights),
        seeds=options.seeds,
        trigger=options.trigger,
        class_noun=options.class_noun,
        output=options.output,
        settings=settings,
        device=options.device,
        precision=options.precision,
    )
    finished = finished_or_interrupted(events, quiet=options.json)
    if finished is None or isinstance(finished, int):
        return finished or 0
    summary = read_summary(Path(finished.path).parent)
    if options.json:
        print(json_text(summary))
    else:
        print(translated(f"Look at {finished.path}"))
        print_summary(summary)
    return 1 if all(one.failure for one in summary.candidates[1:]) else 0


def _is_setting(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def _weights(written: str) -> list[float]:
    try:
        return [float(weight) for weight in written.split(",") if weight.strip()]
    except ValueError:
        raise RecipeError(
            f"--weights is {written!r}; it takes numbers with commas between them: 0.4,0.7,1."
        ) from None


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="konomi evaluate",
        usage="konomi evaluate RUN|FILE... [options] [evaluation.KEY=VALUE ...]",
        description="Draw saved files and the untouched base from the same noise, measure likeness,"
        " prompt following and harm, and say which file to keep. What is there already is not made "
        "again.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "what",
        metavar="RUN|FILE",
        nargs="*",
        help="a run, of which every saved file is measured, or adapters, embeddings, whole models",
    )
    add("--base", metavar="BASE", help="the model to draw with (default: the run's)")
    add(
        "--with",
        dest="adapters",
        metavar="FILE[:WEIGHT]",
        action="append",
        default=[],
        help="an adapter that stays attached to the base (default: those of the run)",
    )
    add(
        "--images",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="pictures to compare with (default: those the run held out)",
    )
    add(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="one prompt a line; {} stands for trigger and class",
    )
    add(
        "--weights",
        metavar="W,...",
        default="",
        help="strengths to draw each file at, such as 0.4,0.7,1",
    )
    add("--seeds", metavar="N", type=int, help="pictures of each prompt (default: 4)")
    add("--trigger", metavar="WORD", default="", help="the word that means the subject")
    add(
        "--class",
        dest="class_noun",
        metavar="NOUN",
        default="",
        help="the class of the subject, e.g. dog",
    )
    add(
        "--output",
        metavar="DIR",
        type=Path,
        help="where to (default: RUN/evaluation, or evaluations/NAME)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 (default: %(default)s)")
    add("--json", action="store_true", help="print JSON for programs")
    return parser

"""`konomi collect`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import json_text, tell
from konomi.errors import printable
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.cli.countdown import Countdown
    from konomi.curation.collecting import Collected, CollectReport


def collect(arguments: list[str]) -> int:
    """Collect pictures and tags from a site."""
    options = _parser().parse_args(arguments)

    from konomi import tasks
    from konomi.cli.countdown import Countdown
    from konomi.curation.collecting import Collected

    countdown, report = Countdown(), None
    for news in tasks.collect(
        *options.tags,
        output=options.output,
        site=options.site,
        limit=options.limit,
        ratings=() if options.rating == "all" else tuple(options.rating.split(",")),
        min_score=options.min_score,
        min_side=options.min_side,
        exclude=options.exclude,
        captions=options.captions,
        trigger=options.trigger,
        ai_made=options.ai_made,
        max_mib=options.max_mib,
        tell=tell,
    ):
        if isinstance(news, Collected):
            _show(news, countdown)
        else:
            report = news
    assert report is not None
    if options.json:
        print(json_text(report))
    else:
        _print(report, options.trigger)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="konomi collect",
        description="Collect pictures that have all of these tags, the newest first, with a "
        "caption beside each and metadata.jsonl with where each comes from. Asked again, it goes "
        "on. docs/collecting.md is about rights and credit.",
        allow_abbrev=False,
    )
    parser.add_argument("tags", nargs="+", metavar="TAG", help="as the site writes it")
    parser.add_argument(
        "--from",
        dest="site",
        metavar="SITE",
        default="danbooru",
        help="danbooru, safebooru, gelbooru, or NAME:URL for another site that runs the same "
        "program (default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="the folder"
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=100,
        help="pictures of the site in the folder, with those that are there already (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--rating",
        metavar="R",
        default="general",
        help="general, sensitive, questionable, explicit, with commas between, or all (default: "
        "%(default)s)",
    )
    parser.add_argument("--min-score", metavar="N", type=int, help="the least score")
    parser.add_argument(
        "--min-side",
        metavar="PX",
        type=int,
        default=0,
        help="pixels of the shorter side, at least",
    )
    parser.add_argument(
        "--exclude",
        metavar="TAG",
        action="append",
        default=[],
        help="a tag whose pictures are left out; may be repeated",
    )
    parser.add_argument(
        "--captions",
        choices=("site", "grouped", "none"),
        default="site",
        help="tags in the site's order, characters first, or none (default: %(default)s)",
    )
    parser.add_argument(
        "--trigger", metavar="WORD", default="", help="a word that every caption begins with"
    )
    parser.add_argument(
        "--ai-made",
        action="store_true",
        help="take what the site marks as made by a model, which is left out else",
    )
    parser.add_argument(
        "--max-mib",
        metavar="N",
        type=int,
        default=64,
        help="size of one file, in MiB, at most (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _show(news: "Collected", countdown: "Countdown") -> None:
    """One line that is written over, on a screen; a line for every fifty pictures elsewhere."""
    from konomi.training.events import Prepared

    left = countdown.text(Prepared("pictures", news.done, news.total))
    text = translated(f"collecting: {news.done}/{news.total}") + (
        f"  {translated(left)}" if left else ""
    )
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif news.path is None or news.done % 50 == 0:
        print(text, file=sys.stderr, flush=True)


def _print(report: "CollectReport", trigger: str) -> None:
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for note in report.notes:
        tell(note)
    folder = printable(str(report.folder))
    print(
        translated(
            f"{folder}: {report.new} new pictures, {report.present} in all, {report.requests} "
            "requests"
        )
    )
    for reason, count in sorted(report.left_out.items(), key=lambda item: -item[1]):
        print(translated(f"  left out: {count}, {reason}"))
    if report.present:
        called = f" --trigger {printable(trigger)}" if trigger else ""
        print(translated(f"Next: konomi check --images {folder}{called}"))
    else:
        print(translated("Nothing was found. Are the tags written as the site writes them?"))

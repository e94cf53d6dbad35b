"""`konomi identifiers`."""

import sys
from typing import TYPE_CHECKING

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import json_text, tell
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.tasks.identifying import Identifier


def identifiers(arguments: list[str]) -> int:
    """List words that a base can learn as names."""
    parser = ArgumentParser(
        prog="konomi identifiers",
        description="List rare words of one token as identifiers for DreamBooth, those first "
        "to which the base reacts least.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--base", required=True, help="`tiny` (built in), a folder, a file, or a hub id"
    )
    parser.add_argument("--vae", metavar="VAE", help="as for other commands; no VAE is used here")
    parser.add_argument(
        "--prediction",
        metavar="WHAT",
        help="epsilon, v_prediction or sample, in place of what it says",
    )
    parser.add_argument(
        "--class",
        dest="class_noun",
        metavar="NOUN",
        default="",
        help="the class of the subject, e.g. dog",
    )
    parser.add_argument(
        "--count", metavar="N", type=int, default=20, help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)

    from konomi import tasks
    from konomi.training.events import Prepared

    if options.vae:
        tell("--vae has no effect here: words are measured without a VAE.")
    found: tuple[Identifier, ...] = ()
    shown = sys.stderr.isatty()
    for news in tasks.identifiers(
        options.base,
        class_noun=options.class_noun,
        count=options.count,
        prediction=options.prediction,
        device=options.device,
    ):
        if not isinstance(news, Prepared):
            found = news
        elif shown:
            end = "\n" if news.done == news.total else ""
            told = translated(f"measuring {news.what}: {news.done}/{news.total}")
            print(f"\r{told}", end=end, file=sys.stderr, flush=True)
    if options.json:
        print(json_text(found))
    else:
        _print_table(found)
    return 0


def _print_table(found: "tuple[Identifier, ...]") -> None:
    from rich.table import Table

    from konomi.cli.screen import screen

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(translated("word"))
    for name in ("token", "text", "denoiser", "score"):
        table.add_column(translated(name), justify="right")
    for one in found:
        table.add_row(
            one.word, str(one.token), f"{one.text:.3f}", f"{one.denoiser:.4f}", f"{one.score:.4f}"
        )
    console = screen()
    console.print(table)
    console.print(translated("Lower is better: the base has no meaning for the word yet."))

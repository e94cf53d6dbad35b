"""`konomi report`: the page again."""

import webbrowser
from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.errors import printable
from konomi.language import LANGUAGES, translated


def report(arguments: list[str]) -> int:
    """Write the page of a run, an evaluation or a comparison."""
    parser = ArgumentParser(
        prog="konomi report",
        description="Write report.html, a page to look at, from what lies in a run folder or in "
        "that of a comparison.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", metavar="RUN|DIR", type=Path, help="what train, evaluate or compare wrote to"
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, help="of the page (default: the environment's)"
    )
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    options = parser.parse_args(arguments)

    from konomi import tasks

    path = tasks.report(options.folder, language=options.language)
    print(translated(f"Look at {printable(str(path))}"))
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        print(translated("There is no browser here to show it in."))
    return 0

"""`konomi inspect` and `konomi convert`."""

import os
import sys
from pathlib import Path
from typing import Any

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import json_text, plain, tell
from konomi.cli.recipes import add_base_flags
from konomi.errors import KonomiError, printable
from konomi.language import translated


def inspect(arguments: list[str]) -> int:
    """Say what files are. One that cannot be read does not keep the others from being shown."""
    parser = ArgumentParser(
        prog="konomi inspect",
        description="Show what a model or adapter file is, its trigger, which programs can "
        "use it, and whether it is intact.",
        allow_abbrev=False,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument(
        "--all", action="store_true", help="also show metadata, hashes, types and sizes"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_intermixed_args(arguments)

    from konomi import tasks

    entries: list[dict[str, Any]] = []
    failed = False
    for path in options.files:
        try:
            report = tasks.inspect(path)
        except KonomiError as error:
            if os.environ.get("KONOMI_DEBUG"):
                raise
            failed = True
            print(translated(str(error)), file=sys.stderr)
            entries.append({"path": str(path), "error": str(error)})
            continue
        entries.append({"path": str(path), **plain(report)})
        if problem := getattr(report, "problem", ""):
            failed = True
            entries[-1]["error"] = problem
        if not options.json:
            from konomi.cli.report_view import print_file

            print_file(path, report, everything=options.all)
        if problem:
            print(translated(printable(problem)), file=sys.stderr)
    if options.json:
        print(json_text(entries))
    return 1 if failed else 0


def convert(arguments: list[str]) -> int:
    """Write a file in another format."""
    parser = ArgumentParser(
        prog="konomi convert",
        description="Write a file in another tool's format.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        help="kohya, diffusers, peft, webui, custom; by default chosen by OUT's name",
    )
    parser.add_argument(
        "--base", metavar="BASE", help="the model that the adapter was trained on, if needed"
    )
    add_base_flags(parser)
    parser.add_argument(
        "--compress",
        metavar="SHARE",
        type=float,
        help="keep this share of the singular values of each update (e.g. 0.6)",
    )
    options = parser.parse_args(arguments)

    from konomi import tasks

    path = tasks.convert(
        options.source,
        options.target,
        to=options.to,
        base=options.base,
        vae=options.vae,
        prediction=options.prediction,
        compress=options.compress,
        tell=tell,
    )
    print(translated(f"Wrote {printable(str(path))}"))
    for line in tasks.where_it_works(path):
        print(f"  {translated(printable(line))}")
    return 0

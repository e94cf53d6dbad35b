"""`konomi merge`."""

import argparse
from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import tell
from konomi.errors import RecipeError
from konomi.language import translated

KINDS = ("custom",)


def merge(arguments: list[str]) -> int:
    """Make one file of several, in the way the first word says."""
    parser = ArgumentParser(
        prog="konomi merge", description="Make one file of several.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_custom(
        kinds.add_parser(
            "custom", help="files of Custom Diffusion that were trained apart", allow_abbrev=False
        )
    )
    options = parser.parse_args(arguments)
    return _custom(options)


def _add_custom(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Merge files of Custom Diffusion in closed form: each subject keeps what its word stands "
        "for, and the base changes as little as it can on ordinary captions."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="files or folders, two or more")
    parser.add_argument(
        "--base", metavar="BASE", required=True, help="the model all of them were trained on"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder, .bin or .safetensors",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        default=[],
        help='a text with the word of a file; repeat it for more (by default "photo of a WORD")',
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        type=Path,
        help="ordinary captions, one a line; konomi has some",
    )
    parser.add_argument(
        "--to", metavar="FORMAT", help="diffusers, custom, webui; by default what OUT's name says"
    )


def _custom(options: argparse.Namespace) -> int:
    from konomi import tasks

    if options.to is not None and options.to not in ("diffusers", "custom", "webui", "kohya"):
        raise RecipeError(f"--to is {options.to!r}; choose diffusers, custom or webui.")
    merged = tasks.merge_custom(
        options.files,
        options.output,
        base=options.base,
        prompts=options.prompt,
        captions=options.captions,
        to=options.to,
        tell=tell,
    )
    for prompt in merged.prompts:
        print(translated(f"kept: {prompt}"))
    said = (
        f"{merged.num_captions} ordinary captions; largest error on what is kept: "
        f"{merged.largest_error:.1e}"
    )
    print(translated(said))
    print(translated(f"Wrote {merged.path}"))
    return 0

"""`konomi train aesthetic`, and the flags of Aesthetic Gradients in `konomi generate`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import tell
from konomi.errors import RecipeError, printable
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.config.aesthetic import AestheticConfig

NAME = "aesthetic"
_METAVARS = {"files": "FILE[:WEIGHT]", "steps": "N", "rate": "RATE", "text": "WORDS",
             "text_share": "SHARE", "clip": "CLIP"}  # fmt: skip


def train_aesthetic(arguments: list[str]) -> int:
    """Make an aesthetic embedding of pictures; prints its path."""
    parser = ArgumentParser(
        prog="konomi train aesthetic",
        description="Make an aesthetic embedding: the mean of the CLIP features of pictures "
        "you like. `konomi generate --aesthetic FILE` tunes each prompt towards it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--images",
        metavar="DIR[:WEIGHT]",
        action="append",
        default=[],
        help="folder of pictures you like; may be repeated, a negative weight takes pictures away",
    )
    add("--base", default="", help="`tiny` (built in), a folder, a file, or a hub id")
    add(
        "--clip",
        metavar="CLIP",
        default="",
        help="a CLIP folder or hub id, in place of the base's own",
    )
    add(
        "--output",
        metavar="RUN|FILE",
        default="",
        help="the run folder (default: runs/NAME), or a file: .safetensors, or .pt for A1111",
    )
    add("--overwrite", action="store_true", help="replace the file if it exists")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)

    from konomi import tasks

    def tell_json(note: str) -> None:
        print(json.dumps({"note": printable(note)}), flush=True)

    path = tasks.train_aesthetic(
        options.images,
        base=options.base,
        clip=options.clip,
        output=options.output,
        overwrite=options.overwrite,
        device=options.device,
        tell=tell_json if options.json else tell,
    )
    if options.json:
        print(json.dumps({"file": str(path)}))
    else:
        print(path)
        said = f"Draw with it: konomi generate PROMPT --base BASE --aesthetic {path}"
        print(translated(said))
    return 0


def refuse_recipe(what: str) -> None:
    """Raises RecipeError for the one method that is no recipe."""
    if what == NAME and not Path(what).exists():
        raise RecipeError(
            "aesthetic takes no training steps and has no recipe. Write konomi train aesthetic "
            "--images DIR --base BASE."
        )


def add_aesthetic_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of Aesthetic Gradients."""
    from konomi.config.aesthetic import AestheticConfig
    from konomi.config.schema import flatten

    group = parser.add_argument_group("Aesthetic Gradients")
    for setting in flatten(AestheticConfig):
        told = setting.help[:1].lower() + setting.help[1:].rstrip(".")
        if setting.default not in (None, "", (), False):
            told += f" (default: {setting.default:g})"
        told = told.replace("%", "%%")
        flag = flag_of(setting.name)
        if setting.name in ("slerp", "negative"):
            group.add_argument(flag, action="store_true", help=told)
        elif setting.name == "files":
            group.add_argument(
                flag, metavar=_METAVARS["files"], action="append", default=[], help=told
            )
        else:
            group.add_argument(
                flag,
                metavar=_METAVARS[setting.name],
                type=type(setting.default),
                default=setting.default,
                help=told,
            )


def flag_of(name: str) -> str:
    """The flag of a setting of `AestheticConfig`."""
    if name in ("files", "clip"):
        return {"files": "--aesthetic", "clip": "--clip"}[name]
    return f"--aesthetic-{name.replace('_', '-')}"


def aesthetic_of(options: argparse.Namespace) -> "AestheticConfig | None":
    """What was asked; None where nothing was."""
    from dataclasses import fields

    from konomi.config.aesthetic import AestheticConfig

    given = {
        item.name: getattr(options, flag_of(item.name)[2:].replace("-", "_"))
        for item in fields(AestheticConfig)
    }
    config = AestheticConfig(**{**given, "files": tuple(given["files"])})
    return None if config == AestheticConfig() else config

"""`konomi new` and `konomi check`, and how a command line becomes a recipe."""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from konomi.cli.aesthetic import refuse_recipe
from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import json_text
from konomi.errors import RecipeError
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.config.recipe import Recipe

RECIPE_FLAGS = {
    "base": "base", "vae": "vae", "prediction": "prediction", "output": "run.output",
    "steps": "run.steps",
    "seed": "run.seed", "clip": "prior.clip", "start": "start", "prompt": "method.prompt",
}  # fmt: skip
"""Flags that also change a recipe from a file, and the settings they stand for."""


def new(arguments: list[str]) -> int:
    """Write a commented recipe to a file, or to standard output."""
    parser = ArgumentParser(
        prog="konomi new",
        description="Write a recipe with every setting explained.",
        allow_abbrev=False,
    )
    parser.add_argument("method", metavar="METHOD", nargs="?", help="lora, full, ...")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE|COMMAND",
        help="the recipe in a recipe card (NAME.card.png), or import settings: an sd-scripts TOML "
        "or command line, OneTrainer JSON, ai-toolkit YAML",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="output file; by default the screen"
    )
    parser.add_argument("--base", help="the model to start from (default: tiny)")
    parser.add_argument("--images", metavar="DIR", help="folder of images (default: photos)")
    parser.add_argument("--trigger", metavar="WORD", help="the trigger word for what is trained")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options = parser.parse_args(arguments)

    from konomi.config.load import commented_recipe
    from konomi.config.overrides import named_method
    from konomi.storage.atomic import explained, write_text
    from konomi.tasks.recipes import METHOD_CONFIGS

    if options.source is not None:
        _say_unused(options)
        text = _brought_along(options.source)
    elif options.method is None:
        parser.error("name a method (lora, full, ...), or other settings with --from")
    else:
        refuse_recipe(options.method)
        config, settings = named_method(options.method, METHOD_CONFIGS)
        text = commented_recipe(
            config,
            base=options.base or "tiny",
            images=options.images or "photos",
            trigger=options.trigger or "",
            settings=settings,
        )
    if options.output is None or str(options.output) == "-":
        print(text, end="")
        return 0
    with explained(options.output):
        if options.output.exists() and not options.overwrite:
            raise RecipeError(
                f"{options.output}: exists already. Choose another name, or add --overwrite."
            )
        if not options.output.parent.is_dir():
            raise RecipeError(
                f"{options.output.parent}: no such folder. Make it, or write the recipe somewhere "
                "else."
            )
        write_text(options.output, text)
    print(translated(f"Wrote {options.output}. Next: konomi check {options.output}"))
    return 0


def _say_unused(options: argparse.Namespace) -> None:
    """What --from leaves without effect: the settings that it brings count."""
    given = {"METHOD": options.method, "--base": options.base, "--images": options.images}
    for flag in (flag for flag, value in (given | {"--trigger": options.trigger}).items() if value):
        told = f"{flag} has no effect with --from. Change it in the recipe that is written."
        print(f"note: {translated(told)}", file=sys.stderr)


def _brought_along(source: str) -> str:
    """The recipe in a card, or of another tool's settings; what is not taken over is said as well
    as written.
    """
    from konomi.config.card import is_picture
    from konomi.config.foreign import import_settings, imported_recipe
    from konomi.errors import printable
    from konomi.tasks.recipes import METHOD_CONFIGS, recipe_of_card

    if is_picture(Path(source)):
        return recipe_of_card(source)
    found = import_settings(source, METHOD_CONFIGS)
    for line in found.left:
        print(translated(f"not imported: {printable(line)}"), file=sys.stderr)
    said = f"{len(found.taken)} settings of {found.tool} imported, {len(found.left)} not."
    print(translated(said), file=sys.stderr)
    return imported_recipe(
        found, Path(source).name if Path(source).suffix and "--" not in source else "a command line"
    )


def check(arguments: list[str]) -> int:
    """Show what a run would do."""
    parser = ArgumentParser(
        prog="konomi check",
        usage="konomi check RECIPE|CARD [key=value ...] [--time] [--json] [--all]\n"
        "       konomi check [METHOD] --images DIR [--base BASE] [options] [key=value ...]\n"
        "       konomi check --run RUN [--captions] [--json]",
        description="Per image the final caption, bucket, crop, repeats and problems; steps and "
        "time to expect.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        metavar="RECIPE|METHOD",
        nargs="*",
        help="a recipe file, or a method (default: lora)",
    )
    add_recipe_flags(parser, base="tiny")
    parser.add_argument(
        "--all", action="store_true", help="show every image, however many there are"
    )
    parser.add_argument(
        "--time",
        action="store_true",
        help="load the base, run three steps and estimate the total time",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "--run", metavar="RUN", type=Path, help="list a run's images that have too high a loss"
    )
    parser.add_argument(
        "--captions",
        action="store_true",
        help="with --run: try each image with captions of others, to find those that are not of it",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.captions and options.run is None:
        parser.error("--captions needs --run RUN")
    if options.run is not None:
        from konomi.cli.losses_view import print_captions, print_losses

        if options.what or options.images:
            parser.error("--run looks at what a run has noted; leave recipe and images out")
        if options.captions:
            return print_captions(options.run, as_json=options.json)
        return print_losses(options.run, as_json=options.json)
    names = [word for word in options.what if "=" not in word or Path(word).is_file()]
    if not names and not options.images:
        parser.error("name a recipe, or a folder with --images DIR")
    options.what = [*(names or ["lora"]), *(word for word in options.what if word not in names)]
    recipe = recipe_of(parser, options)

    from konomi import tasks

    named = (
        options.base
        or _looks_like_file(options.what[0])
        or any(w.startswith("base=") for w in options.what)
    )
    report = tasks.check(recipe, measure=options.time, assumed_base=not named)
    if options.json:
        print(json_text(report))
    else:
        from konomi.cli.check_view import print_check

        print_check(report, show_all=options.all)
    return 1 if report.stops else 0


def add_recipe_flags(parser: argparse.ArgumentParser, *, base: str | None = None) -> None:
    """The flags that make a recipe of a method and a folder; `base` is the default in that case."""
    parser.set_defaults(default_base=base)
    add_subject_flags(parser)
    add_base_flags(parser)
    add = parser.add_argument
    add(
        "--clip",
        metavar="CLIP",
        help="a CLIP folder or hub id that proposes a class noun where none is given",
    )
    add(
        "--start",
        metavar="FILE",
        help="an adapter to continue from (method.start)",
    )
    add("--prompt", metavar="P", help="what an edited picture should show (imagic)")
    add("--output", metavar="RUN", help="the run folder (default: runs/NAME)")
    add("--steps", metavar="N", type=int, help="total number of optimiser steps")
    add("--seed", metavar="S", type=int, help="random seed for order, noise and timesteps")


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    """What is learned, and on which base."""
    add = parser.add_argument
    add(
        "--images",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="folder of training images; may be repeated",
    )
    add("--base", help="`tiny` (built in), a folder, a .safetensors or .ckpt file, or a hub id")
    add("--trigger", metavar="WORD", default="", help="the trigger word for what is trained")
    add(
        "--class",
        dest="class_noun",
        metavar="NOUN",
        default="",
        help="the class of the subject, e.g. dog",
    )
    add(
        "--with",
        dest="adapters",
        metavar="FILE[:WEIGHT]",
        action="append",
        default=[],
        help="an adapter that stays attached to the base during training; may be repeated",
    )
    add(
        "--prior",
        metavar="DIR",
        type=Path,
        help="class (regularisation) images, so that the class is preserved",
    )


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    """What may be said of a base beside where it is."""
    parser.add_argument(
        "--vae",
        metavar="VAE",
        help="a VAE to use instead of the base's own",
    )
    parser.add_argument(
        "--prediction",
        metavar="WHAT",
        help="epsilon, v_prediction or sample, where the base's file does not say it",
    )


def recipe_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> "Recipe":
    """The recipe that parsed arguments stand for. Raises RecipeError."""
    what, *changes = options.what
    if strays := [word for word in changes if "=" not in word]:
        parser.error(f"unexpected {strays[0]!r}; settings are changed by name=value")
    check_folders(options)
    if options.steps is not None and options.steps < 1:
        raise RecipeError(
            f"--steps is {options.steps}; at least 1. Without it the recipe's or method's number "
            "counts."
        )
    if _looks_like_file(what):
        return _from_file(what, options, changes)
    return _from_method(what, options, changes)


def attached_of(options: argparse.Namespace) -> list[str]:
    """The setting that --with stands for."""
    return [f"adapters={json.dumps(options.adapters)}"] if options.adapters else []


def check_folders(options: argparse.Namespace) -> None:
    """Raises RecipeError where --images or --prior names nothing."""
    for folder in (*options.images, *([options.prior] if options.prior else [])):
        if not folder.exists():
            raise RecipeError(f"--images {folder}: no such file or folder.{_similar(folder)}")


def _from_file(what: str, options: argparse.Namespace, changes: list[str]) -> "Recipe":
    from konomi.config.card import is_picture

    flags = {"--images": options.images, "--prior": options.prior}
    flags |= {"--trigger": options.trigger, "--class": options.class_noun}
    is_card = is_picture(Path(what))
    if not is_card and (given := [flag for flag, value in flags.items() if value]):
        raise RecipeError(
            f"{given[0]}: goes with a method or a recipe card, not with a recipe. Change "
            f"data.sources in {what} instead."
        )
    if not Path(what).exists():
        raise RecipeError(
            f"{what}: no such recipe.{_similar(Path(what))} `konomi new lora -o {what}` writes one."
        )
    flagged = [
        f"{path}={value}"
        for flag, path in RECIPE_FLAGS.items()
        if (value := getattr(options, flag)) is not None
    ]
    flagged += attached_of(options)

    from konomi.tasks.recipes import read_recipe, recipe_from_card

    if not is_card:
        return read_recipe(what, [*flagged, *changes])
    return recipe_from_card(
        what,
        images=options.images,
        trigger=options.trigger,
        class_noun=options.class_noun,
        prior_images=options.prior,
        overrides=[*flagged, *changes],
    )


def _from_method(what: str, options: argparse.Namespace, changes: list[str]) -> "Recipe":
    from konomi.config.overrides import named_method
    from konomi.tasks.recipes import METHOD_CONFIGS, recipe_from_flags

    refuse_recipe(what)
    named_method(what, METHOD_CONFIGS)
    base = options.base or options.default_base
    if not options.images and not any(
        change.startswith("data.sources.0.path=") for change in changes
    ):
        raise RecipeError(
            f"data.sources: no images. Name their folder: konomi train {what} --images DIR --base "
            "BASE"
        )
    if not base and not any(change.startswith("base=") for change in changes):
        raise RecipeError(
            "base: must be set. Name it with --base: tiny (built in), a folder, a .safetensors or "
            ".ckpt file, a hub id."
        )
    return recipe_from_flags(
        what,
        images=options.images,
        base=base or "",
        trigger=options.trigger,
        class_noun=options.class_noun,
        output=options.output or "",
        steps=options.steps,
        seed=options.seed,
        prior_images=options.prior,
        overrides=[
            *(
                f"{RECIPE_FLAGS[flag]}={value}"
                for flag in ("vae", "prediction", "clip", "start", "prompt")
                if (value := getattr(options, flag))
            ),
            *attached_of(options),
            *changes,
        ],
    )


def _looks_like_file(what: str) -> bool:
    return what.endswith((".toml", ".png")) or "/" in what or "\\" in what or Path(what).is_file()


def _similar(path: Path) -> str:
    """` Did you mean ...?` with what lies beside a path that is not there."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1)
    return f" Did you mean {path.with_name(close[0])}?" if close else ""

"""`konomi generate`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from konomi.cli.aesthetic import add_aesthetic_flags, aesthetic_of
from konomi.cli.arguments import ArgumentParser
from konomi.cli.recipes import add_base_flags
from konomi.errors import printable

METAVARS = {
    "negative": "P",
    "seed": "S",
    "steps": "N",
    "guidance": "G",
    "guidance_rescale": "PHI",
    "sampler": "NAME",
}
"""Of the flags that stand for `konomi.config.generation.GenerationConfig`."""
READ: Mapping[str, type] = {"whole number": int, "number": float}


def generate(arguments: list[str]) -> int:
    """Draw pictures; prints each file's path when it is written."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    options.prompts += options.prompt
    if not options.prompts and options.prompt_file is None and options.edit is None:
        parser.error("give a prompt, or --prompt-file FILE")

    from konomi import tasks
    from konomi.cli.plain import tell

    paths = tasks.generate(
        options.prompts,
        base=options.base,
        vae=options.vae,
        prediction=options.prediction,
        add=options.add,
        **{name: getattr(options, name) for name in METAVARS},
        size=options.size,
        count=options.count,
        init=options.init,
        strength=options.strength,
        mask=options.mask,
        output=options.output,
        batch=options.batch,
        grid=options.grid,
        clip_skip=options.clip_skip,
        device=options.device,
        precision=options.precision,
        prompt_file=options.prompt_file,
        aesthetic=aesthetic_of(options),
        edit=options.edit,
        eta=options.eta,
        tell=_tell_json if options.json else tell,
    )
    for path in paths:
        print(json.dumps({"picture": str(path)}) if options.json else path, flush=True)
    return 0


def _tell_json(note: str) -> None:
    print(json.dumps({"note": printable(note)}), flush=True)


def add_picture_settings(parser: argparse.ArgumentParser, *, seed: str = "a new one") -> None:
    """A flag for each setting of a picture, with the explanation that recipes show. `seed`: its
    default, in words.
    """
    from konomi.config.generation import GenerationConfig
    from konomi.config.schema import flatten

    for setting in flatten(GenerationConfig):
        told = setting.help[:1].lower() + setting.help[1:].rstrip(".")
        if setting.choices:
            told = f"one of {', '.join(map(str, setting.choices))}"
        default = seed if setting.name == "seed" else setting.default
        told += "" if default in (None, "") else f" (default: {default})"
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            metavar=METAVARS[setting.name],
            type=READ.get(setting.shape.word, str),
            help=told.replace("%", "%%"),
        )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="konomi generate",
        description="Generate images. The settings are written into each PNG; the same seed "
        "gives the same image.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        help="what to generate; several prompts give several images",
    )
    add("--base", required=True, help="`tiny`, a folder, a .safetensors or .ckpt file, or a hub id")
    add_base_flags(parser)
    add(
        "--add",
        metavar="FILE[:WEIGHT]",
        action="append",
        default=[],
        help="an adapter; may be repeated",
    )
    add_picture_settings(parser)
    add("--size", metavar="WxH", help="in pixels, multiples of 8; by default the base's own")
    add(
        "--count", metavar="N", type=int, default=1, help="images per prompt (default: %(default)s)"
    )
    add(
        "--batch",
        metavar="N",
        type=int,
        default=1,
        help="images generated at a time (default: %(default)s)",
    )
    add(
        "--init",
        metavar="IMAGE",
        type=Path,
        help="an image to start from (img2img); a large one is scaled to the base's area",
    )
    add("--strength", metavar="X", type=float, help="how much to change, 0 to 1 (default: 0.7)")
    add("--mask", metavar="IMAGE", type=Path, help="an image that is white where to inpaint")
    add(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("images"),
        help="output folder (default: %(default)s)",
    )
    add("--grid", action="store_true", help="also write all images as one grid")
    add(
        "--clip-skip",
        metavar="N",
        type=int,
        default=0,
        help="CLIP layer from the end; 0: the base's own",
    )
    add(
        "--prompt-file",
        metavar="FILE",
        type=Path,
        help="a file with one prompt per line, with --n --w --h --d --s --l",
    )
    _add_edit_flags(parser)
    add_aesthetic_flags(parser)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 (default: %(default)s)")
    add(
        "--json",
        action="store_true",
        help="print one JSON object per line for each image and note",
    )
    return parser


def _add_edit_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--edit",
        metavar="FILE",
        type=Path,
        help="an edited picture (konomi train imagic); without a prompt its own target is drawn",
    )
    add(
        "--eta",
        metavar="X",
        type=float,
        help="of an edit: 0 the picture, 1 the target, or any number (default: 0.7)",
    )
    add(
        "--prompt",
        metavar="P",
        action="append",
        default=[],
        help="a prompt, as without the flag: of an edit another target",
    )
